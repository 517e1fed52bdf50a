"""The twin computes the float model's function, under the student's names."""

import copy

import pytest
import torch
from torch.ao.quantization.quantize_fx import prepare_fx

import zaq_fx
from zaq_plugin.pwlq import PWLQSpec


def taps(model, images, names):
    seen = {}
    hooks = [
        model.get_submodule(n).register_forward_hook(
            lambda module, args, out, n=n: seen.__setitem__(n, out.detach())
        )
        for n in names
    ]
    out = model(images)
    for hook in hooks:
        hook.remove()
    return out, seen


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("activations", [4, PWLQSpec(bits=4)], ids=["uniform", "pwlq"])
def test_twin_is_the_float_model(make_net, images, qat, activations):
    model = make_net()
    prepared = zaq_fx.prepare(model, (images,), PWLQSpec(bits=2), activations, qat=qat)
    teacher = zaq_fx.twin(prepared)
    for inputs in (images, 3 * images):
        expected = model(inputs)
        assert (teacher(inputs) - expected).norm() < 1e-4 * expected.norm()
    zaq_fx.calibrate(prepared, [images], bias_correction=False)
    later = zaq_fx.twin(prepared)
    assert (later(images) - model(images)).norm() < 1e-4 * model(images).norm()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())


def test_taps_have_the_same_names_and_the_student_differs(make_net, images):
    prepared = zaq_fx.prepare(make_net(), (images,), PWLQSpec(bits=2), 4, qat=True)
    zaq_fx.calibrate(prepared, [images])
    prepared.eval()
    teacher = zaq_fx.twin(prepared)
    names = ["stem", "conv", "fc"]
    student_out, student = taps(prepared, images, names)
    teacher_out, float_values = taps(teacher, images, names)
    assert [n for n, _ in prepared.named_modules()] == [n for n, _ in teacher.named_modules()]
    for name in names:
        assert student[name].shape == float_values[name].shape
        assert not torch.equal(student[name], float_values[name])
    assert (student_out - teacher_out).abs().max() > 0.01


def test_the_twin_is_a_copy(make_net, images):
    prepared = zaq_fx.prepare(make_net(), (images,), PWLQSpec(bits=4), qat=True)
    zaq_fx.calibrate(prepared, [images])
    state = copy.deepcopy(prepared.state_dict())
    teacher = zaq_fx.twin(prepared)
    before = teacher(images)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    prepared(images).sum().backward()
    optimizer.step()
    assert torch.equal(teacher(images), before)
    assert any(not torch.equal(v, state[k]) for k, v in prepared.state_dict().items())


def test_stock_observers_are_silent_in_the_twin(make_net, images):
    mapping = torch.ao.quantization.get_default_qconfig_mapping()
    prepared = prepare_fx(make_net(), mapping, (images,))
    teacher = zaq_fx.twin(prepared)
    expected = make_net()(images)
    assert (teacher(images) - expected).norm() < 1e-4 * expected.norm()
    with pytest.raises(ValueError, match="that was not prepared"):
        zaq_fx.twin(torch.fx.symbolic_trace(make_net()))


def test_it_has_a_module_of_its_own_and_is_a_function_whatever_is_imported_first() -> None:
    """Programs import it from there."""
    from zaq_fx.twin import twin

    assert zaq_fx.twin is twin
    assert callable(zaq_fx.twin)
