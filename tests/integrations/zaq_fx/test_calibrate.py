"""Calibration freezes ranges; bias correction removes exactly the mean error."""

import copy
import re

import pytest
import torch
from torch import nn

import zaq_fx
from zaq_fx.layers import layers_of
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize

SPEC = PWLQSpec(bits=3)
COARSE = UniformSpec(bits=2)


@pytest.mark.parametrize("qat", [False, True])
def test_correction_is_the_mean_error_of_the_first_layer(qat):
    """One layer behind an exact input: E[(W - W^) x], by hand in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False)).eval()
    x = torch.randn(4, 3, 9, 9)
    prepared = zaq_fx.prepare(model, (x,), SPEC, qat=qat, overrides={"0": (SPEC, 8)})
    zaq_fx.calibrate(prepared, [x], bias_correction=False)
    watcher = next(w for _, w in zaq_fx.activations.watcher_nodes(prepared))
    scale, zero_point = watcher.calculate_qparams()
    seen = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), 0, 255)
    added = zaq_fx.correct_bias(prepared, [x[:1], x[1:]])
    weight = model[0].weight.detach()
    error = (weight - quantize(weight, SPEC).dequantize()).double()
    expected = nn.functional.conv2d(seen.double(), error, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(added["0"].double(), expected, rtol=1e-4, atol=1e-6)
    layer = prepared.get_submodule("0")
    torch.testing.assert_close(layer.bias.detach().double(), expected, rtol=1e-4, atol=1e-6)
    assert model[0].bias is None


@pytest.mark.parametrize("qat", [False, True])
def test_mean_outputs_agree_after_correction(make_net, images, qat):
    """A coarse uniform grid, so that the weights' error outweighs everything else."""
    means = {}
    for correct in (False, True):
        prepared = zaq_fx.prepare(make_net(), (images,), COARSE, qat=qat)
        zaq_fx.calibrate(prepared, [images], bias_correction=correct)
        converted = zaq_fx.convert(prepared)
        means[correct] = (converted(images) - make_net()(images)).mean(0).abs().mean()
    assert means[True] < 0.5 * means[False]


@pytest.mark.parametrize("stock", [False, True])
def test_the_users_model_is_not_touched(make_net, images, stock):
    from torch.ao.quantization.quantize_fx import prepare_fx

    model = make_net()
    before = copy.deepcopy(model.state_dict())
    names = [name for name, _ in model.named_modules()]
    if stock:
        backend = zaq_fx.pwlq_backend_config()
        mapping = zaq_fx.pwlq_qconfig_mapping(SPEC)
        prepared = prepare_fx(model, mapping, (images,), backend_config=backend)
    else:
        prepared = zaq_fx.prepare(model, (images,), SPEC)
    zaq_fx.calibrate(prepared, [images])
    zaq_fx.convert(prepared)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert [name for name, _ in model.named_modules()] == names


def test_calibrated_training_models_are_frozen_and_keep_their_mode(make_net, images):
    prepared = zaq_fx.prepare(make_net(), (images,), SPEC, qat=True)
    statistics = prepared.stem.bn.running_mean.clone()
    zaq_fx.calibrate(prepared, [images, images])
    assert prepared.training
    assert prepared.stem.bn.training
    assert torch.equal(prepared.stem.bn.running_mean, statistics)
    for module in prepared.modules():
        if hasattr(module, "observer_enabled"):
            assert int(module.observer_enabled) == 0
            assert int(module.fake_quant_enabled) == 1
    for layer in layers_of(prepared):
        edges = layer.module.weight_fake_quant.edges.clone()
        prepared(images)
        assert torch.equal(layer.module.weight_fake_quant.edges, edges)


def test_batches_may_carry_labels_and_come_from_a_generator(make_net, images):
    plain = zaq_fx.prepare(make_net(), (images,), SPEC)
    zaq_fx.calibrate(plain, [images[:3], images[3:]])
    labelled = zaq_fx.prepare(make_net(), (images,), SPEC)
    zaq_fx.calibrate(labelled, ((b, torch.zeros(3)) for b in (images[:3], images[3:])))
    assert torch.equal(zaq_fx.convert(plain)(images), zaq_fx.convert(labelled)(images))


def test_tokens_have_their_channels_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).eval()
    tokens = torch.randn(3, 7, 6)
    prepared = zaq_fx.prepare(model, (tokens,), SPEC)
    zaq_fx.calibrate(prepared, [tokens])
    converted = zaq_fx.convert(prepared)
    difference = (converted(tokens) - model(tokens)).mean((0, 1)).abs().max()
    assert difference < 0.01


def test_what_is_refused(make_net, images):
    prepared = zaq_fx.prepare(make_net(), (images,), SPEC)
    with pytest.raises(ValueError, match="calibrate got no batches"):
        zaq_fx.calibrate(prepared, [])
    with pytest.raises(ValueError, match="correct_bias got no batches"):
        zaq_fx.correct_bias(prepared, [])
    with pytest.raises(TypeError, match="a batch must be a tensor, a tuple.*got str"):
        zaq_fx.calibrate(prepared, ["images"])
    with pytest.raises(ValueError, match=r"expected a model from prepare_fx.*got Net"):
        zaq_fx.correct_bias(torch.fx.symbolic_trace(make_net()), [images])
    stock = torch.ao.quantization.get_default_qconfig_mapping()
    from torch.ao.quantization.quantize_fx import prepare_fx

    other = prepare_fx(make_net(), stock, (images,))
    other(images)
    with pytest.raises(ValueError, match="nothing to correct.*pwlq_qconfig_mapping"):
        zaq_fx.correct_bias(other, [images])
    with pytest.raises(ValueError, match="has seen no data.*Run calibration batches") as caught:
        zaq_fx.convert(prepared)
    text = str(caught.value)
    assert re.search(r"(\d+) of \1 activations have no range to quantize with \(the first", text)
    assert text.endswith("zaq_fx.calibrate(prepared, batches).")


def test_seven_bits_are_exact_on_every_processor(make_net, images):
    """Two products of 7 by 8 bits fit in the 16 bits in which kernels without VNNI add them."""
    prepared = zaq_fx.prepare(make_net(), (images,), SPEC, 7, input_bits=7)
    zaq_fx.calibrate(prepared, [images])
    expected = zaq_fx.convert(copy.deepcopy(prepared), reference=True)
    converted = zaq_fx.convert(prepared)
    step = max(float(m.scale) for m in converted.modules() if hasattr(m, "zero_point"))
    # A tie that is rounded the other way moves what follows by a step or two.
    assert (converted(images) - expected(images)).abs().max() <= 2 * step
