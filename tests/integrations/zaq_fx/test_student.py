"""FX's students: plain layers come to carry fake-quantizers, and convert as they did before."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import zaq_fx
from zaq_fx import _compat
from zaq_fx.student import CARRIERS, FXStudent
from zaq_plugin.pwlq import PWLQSpec, quantize
from zaq_plugin.student import student_of

KINDS = [k for k in CARRIERS if k.__module__.startswith("torch.nn.modules")]
SPEC = PWLQSpec(bits=4)


def example(kind):
    torch.manual_seed(0)
    if kind is nn.Linear:
        return nn.Linear(6, 5), torch.randn(4, 6)
    rank = int(kind.__name__[-2])
    return kind(4, 6, 3, padding=1), torch.randn(2, 4, *[6] * rank)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_layer_carries_its_quantizer(kind, relu):
    layer, x = example(kind)
    model = nn.Sequential(layer, *[nn.ReLU()] * relu).eval()
    prepared = zaq_fx.prepare(model, (x,), SPEC)
    (view,) = FXStudent(prepared).layers().values()
    assert view.quantizer.spec == SPEC
    assert view.parameter is not layer.weight
    torch.testing.assert_close(prepared(x), model(x))
    zaq_fx.calibrate(prepared, [x], bias_correction=False)
    expected = quantize(layer.weight.detach(), SPEC, view.axis).dequantize()
    assert torch.equal(view.quantized(), expected)
    assert torch.equal(
        zaq_fx.audit(prepared)["0"].sqnr_db * torch.ones(1),
        quantize(layer.weight.detach(), SPEC, view.axis).sqnr_db * torch.ones(1),
    )
    converted = zaq_fx.convert(prepared)
    stored = zaq_fx.integer_weight(converted.get_submodule("0"))
    assert torch.equal(stored.dequantize(), expected)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear])
def test_in_training_a_layer_with_batch_norm_is_seen_as_its_product(kind, relu):
    """What the fake-quantizer is given, and a correction by that which makes nothing worse."""
    layer, x = example(kind)
    norm = (nn.BatchNorm1d if kind is nn.Linear else getattr(nn, f"BatchNorm{kind.__name__[-2:]}"))(
        len(layer.weight)
    )
    nn.init.uniform_(norm.weight, 0.3, 2)
    nn.init.uniform_(norm.running_var, 0.2, 4)
    nn.init.normal_(norm.running_mean)
    model = nn.Sequential(layer, norm, *[nn.ReLU()] * relu).eval()
    with torch.no_grad():
        x = x + 3  # a mean, such that there is something to correct
    prepared = zaq_fx.prepare(model, (x,), SPEC, qat=True)
    zaq_fx.calibrate(prepared, [x])
    prepared.eval()
    (view,) = FXStudent(prepared).layers().values()
    seen = []
    handle = view.quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = prepared(x)
    handle.remove()
    torch.testing.assert_close(view.weight, seen[0].detach())
    torch.testing.assert_close(
        view.weight, layer.weight * (norm.weight / (norm.running_var + norm.eps).sqrt()).reshape(
            -1, *[1] * (layer.weight.dim() - 1)
        )
    )  # fmt: skip
    expected = model(x)
    assert 10 * torch.log10(expected.square().sum() / (expected - output).square().sum()) > 22


def test_levels_that_an_algorithm_chose_are_those_of_stock_conversion(make_net, images):
    """Written weights and edges of another weight: conversion must not solve for edges anew."""
    backend = zaq_fx.pwlq_backend_config()
    mapping = zaq_fx.pwlq_qconfig_mapping(SPEC)
    prepared = prepare_fx(make_net(), mapping, (images,), backend_config=backend)
    zaq_fx.calibrate(prepared, [images])
    layer = FXStudent(prepared).layers()["conv"]
    layer.set_edges(layer.edges * 0.75)
    layer.write(layer.weight.flip(0))
    expected = layer.quantized()
    converted = convert_fx(copy.deepcopy(prepared), backend_config=backend)
    assert torch.equal(zaq_fx.integer_weight(converted.conv).dequantize(), expected)


def test_building_a_student_twice_changes_nothing(make_net, images):
    prepared = zaq_fx.prepare(make_net(), (images,), SPEC)
    before = {name: id(p) for name, p in prepared.named_parameters()}
    FXStudent(prepared)
    assert {name: id(p) for name, p in prepared.named_parameters()} == before


def test_a_graph_of_pt2e_is_none_of_ours(make_net, images):
    """Both hosts leave the same attribute, and the integration imported last is asked first."""
    pt2e = pytest.importorskip("zaq_pt2e", reason="PT2E needs torchao")
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    program = torch.export.export(make_net(), (images,))
    prepared = prepare_pt2e(program.module(), pt2e.PWLQQuantizer(SPEC))
    assert _compat._ATTRS in prepared.meta
    assert not _compat.is_prepared(prepared)
    assert type(student_of(prepared)).__name__ == "PT2EStudent"
