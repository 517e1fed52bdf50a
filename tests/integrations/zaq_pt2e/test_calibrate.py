import copy

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize
from zaq_pt2e import PWLQQuantizer, audit, calibrate, correct_bias
from zaq_pt2e.graph import constant_value, layers


def mean_error(model, reference, images):
    with torch.no_grad():
        return (model(images) - reference(images)).mean(0).abs().max()


def test_a_convolution_s_mean_output_is_restored_exactly(export):
    """Borders included: the mean image goes through the convolution, padding and all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False)).eval()
    images = torch.rand(16, 3, 9, 9)
    spec = PWLQSpec(bits=2)
    prepared = prepare_pt2e(export(model, images), PWLQQuantizer(spec, None))
    with torch.no_grad():
        for part in images.split([3, 6, 7]):  # batches of different sizes
            prepared(part)
        converted = convert_pt2e(prepared)
        per_channel = (converted(images) - model(images)).mean((0, 2, 3))
        weight = model[0].weight
        naive = nn.functional.conv2d(images, quantize(weight, spec).dequantize(), None, 2, 1)
        without = (naive - model(images)).mean((0, 2, 3))
    assert without.abs().max() > 1e-3
    assert per_channel.abs().max() < 1e-5
    assert audit(converted).records[0].reason == "bias corrected"


def test_without_bias_correction_biases_stay(net, images, export):
    quantizer = PWLQQuantizer(UniformSpec(bits=3), bias_correction=False)
    prepared = prepare_pt2e(export(net, images), quantizer)
    with torch.no_grad():
        prepared(images)
        converted = convert_pt2e(prepared)
    (fc,) = [x for x in layers(converted) if x.name == "fc"]
    assert torch.equal(constant_value(converted, fc.node.args[2]), net.fc.bias)
    assert audit(converted)["fc"].reason is None


@pytest.mark.slow
@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
def test_calibrate_lowers_the_mean_error(net, images, export, qat):
    def run(correct):
        prepare = prepare_qat_pt2e if qat else prepare_pt2e
        quantizer = PWLQQuantizer(UniformSpec(bits=3), qat=qat, bias_correction=False)
        prepared = prepare(export(net, images), quantizer)
        calibrate(prepared, [images[:3], (images[3:], torch.zeros(3))], bias_correction=correct)
        with torch.no_grad():
            return convert_pt2e(prepared)

    plain, corrected = run(False), run(True)
    assert mean_error(corrected, net, images) < 0.5 * mean_error(plain, net, images)
    assert audit(corrected)["fc"].reason == "bias corrected"


def test_the_last_layer_s_mean_is_exact_given_its_inputs(net, images, export):
    """What is left after correction is the error of the inputs alone."""
    quantizer = PWLQQuantizer(UniformSpec(bits=3), None, exclude=["stem", "conv"])
    prepared = prepare_pt2e(export(net, images), quantizer)
    added = correct_bias(prepared, [images])
    assert set(added) == {"fc"}
    assert mean_error(convert_pt2e(prepared), net, images) < 1e-5


def test_conversion_does_not_correct_twice(net, images, export):
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer(UniformSpec(bits=3), None))
    calibrate(prepared, [images])
    (fc,) = [x for x in layers(prepared) if x.name == "fc"]
    corrected = constant_value(prepared, fc.node.args[2]).clone()
    assert not torch.equal(corrected, net.fc.bias)
    converted = convert_pt2e(prepared)
    (fc,) = [x for x in layers(converted) if x.name == "fc"]
    assert torch.equal(constant_value(converted, fc.node.args[2]), corrected)


def test_a_second_correction_changes_nothing(net, images, export):
    prepared = prepare_qat_pt2e(export(net, images), PWLQQuantizer(UniformSpec(bits=3), qat=True))
    calibrate(prepared, [images])
    with torch.no_grad():
        once = prepared(images)
        added = correct_bias(prepared, [images])
        again = correct_bias(prepared, [images])
        assert (prepared(images) - once).abs().max() < 1e-5
    assert added.keys() == again.keys() == {"stem", "conv", "fc"}


def test_fake_quantizers_are_on_and_frozen_afterwards(net, images, export):
    prepared = prepare_qat_pt2e(export(net, images), PWLQQuantizer(qat=True))
    calibrate(prepared, [images])
    switches = [m for m in prepared.modules() if hasattr(m, "fake_quant_enabled")]
    assert switches
    assert all(bool(m.fake_quant_enabled[0]) for m in switches)
    assert not any(bool(m.observer_enabled[0]) for m in switches)
    with torch.no_grad():
        one = prepared(images)
        prepared(images * 100)
        assert torch.equal(prepared(images), one)


def test_batches_of_different_shapes(images):
    """Every image counts the same; what conversion would gather by itself has one shape only."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    side = torch.export.Dim("side", min=4)
    shapes = ({0: torch.export.Dim("batch", min=2), 2: side, 3: side},)
    exported = torch.export.export(model, (images,), dynamic_shapes=shapes).module()
    prepared = prepare_pt2e(exported, PWLQQuantizer())
    with torch.no_grad():
        prepared(images)
        prepared(images[..., :8, :8])
        stock = audit(convert_pt2e(copy.deepcopy(prepared)))
        batches = [images, images[:2, :, :8, :8]]
        (added,) = correct_bias(prepared, batches).values()
    assert stock.records[0].reason == "no bias correction: calibration batches differ in shape"
    watcher = prepared.activation_post_process_0
    scale, zero_point = (float(v) for v in watcher.calculate_qparams())
    error = (model[0].weight - quantize(model[0].weight.detach(), PWLQSpec()).dequantize()).detach()
    seen = [torch.fake_quantize_per_tensor_affine(b, scale, int(zero_point), 0, 255)
            for b in batches]  # fmt: skip
    outputs = [nn.functional.conv2d(x.double(), error.double()).mean((2, 3)) for x in seen]
    torch.testing.assert_close(added, torch.cat(outputs).mean(0).float(), rtol=1e-4, atol=1e-6)


def test_errors_of_calibrate(net, images, export):
    exported = export(net, images)
    with pytest.raises(ValueError, match="neither observers nor fake-quantizers"):
        calibrate(exported, [images])
    prepared = prepare_pt2e(exported, PWLQQuantizer())
    with pytest.raises(ValueError, match="calibrate got no batches"):
        calibrate(prepared, [])
    with pytest.raises(TypeError, match="a batch must be a tensor, a tuple .* got str"):
        calibrate(prepared, ["images"])
