import copy

import pytest
import torch
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e

from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.student import twin as zero_shot_twin
from zaq_pt2e import PWLQQuantizer, calibrate, correct_bias, freeze_ranges, set_training, twin


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_the_twin_is_the_original_model(net, images, export, qat, used):
    prepare = prepare_qat_pt2e if qat else prepare_pt2e
    prepared = prepare(export(net, images), PWLQQuantizer(qat=qat))
    with torch.no_grad():
        if used:
            set_training(prepared, False)
            prepared(images)
        before = copy.deepcopy(prepared.state_dict())
        teacher = twin(prepared)
        error = (teacher(images) - net(images)).norm() / net(images).norm()
        teacher(images * 50)
    assert error < 1e-4
    assert not any(p.requires_grad for p in teacher.parameters())
    after = prepared.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
def test_corrected_biases_are_the_student_s_alone(net, images, export, qat):
    prepare = prepare_qat_pt2e if qat else prepare_pt2e
    prepared = prepare(export(net, images), PWLQQuantizer(UniformSpec(bits=3), qat=qat))
    calibrate(prepared, [images])
    correct_bias(prepared, [images])
    with torch.no_grad():
        for teacher in (twin(prepared), *([zero_shot_twin(prepared)] if qat else [])):
            error = (teacher(images) - net(images)).norm() / net(images).norm()
            assert error < 1e-4


def test_taps_map_by_name(net, images, export):
    prepared = prepare_qat_pt2e(export(net, images), PWLQQuantizer(qat=True))
    set_training(prepared, True)
    teacher = twin(prepared)
    assert [n.name for n in teacher.graph.nodes] == [n.name for n in prepared.graph.nodes]
    names = {k for k, _ in prepared.named_modules(remove_duplicate=False)}
    assert names == {k for k, _ in teacher.named_modules(remove_duplicate=False)}


def test_the_teacher_stays_in_evaluation_mode_and_passes_gradients_to_images(net, images, export):
    prepared = prepare_qat_pt2e(export(net, images), PWLQQuantizer(qat=True))
    teacher = twin(prepared)
    assert teacher.train() is teacher
    one = teacher(images)
    teacher(images + 3)
    assert torch.equal(teacher(images), one)
    inputs = images.clone().requires_grad_()
    teacher(inputs).square().sum().backward()
    assert inputs.grad.abs().sum() > 0


@pytest.mark.slow
def test_a_twin_of_a_twin(net, images, export):
    prepared = prepare_qat_pt2e(export(net, images), PWLQQuantizer(qat=True))
    with torch.no_grad():
        assert torch.equal(twin(twin(prepared))(images), twin(prepared)(images))


def test_models_that_were_not_prepared(net, images, export):
    with pytest.raises(ValueError, match="holds neither observers nor fake-quantizers"):
        twin(export(net, images))
    with pytest.raises(ValueError, match="the model holds no fake-quantizer"):
        freeze_ranges(export(net, images))
