import pytest
import torch
from networks import perturb
from pt2e_routes import finish, float_check, prepare, sqnr
from torch import nn
from torch.nn.utils import parametrizations
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize
from zaq_pt2e import audit, set_training, with_pwlq
from zaq_pt2e.graph import constant_value, layers


def x86(qat=False):
    config = get_default_x86_inductor_quantization_config(is_qat=qat)
    return X86InductorQuantizer().set_global(config)


def test_the_stock_graph_with_pwlq_weights(net, images, export):
    def targets(quantizer):
        prepared = prepare_pt2e(export(net, images, strict=True), quantizer)
        with torch.no_grad():
            prepared(images)
            converted = convert_pt2e(prepared)
        return converted, [str(n.target) for n in converted.graph.nodes if n.op != "get_attr"]

    stock, expected = targets(x86())
    converted, names = targets(with_pwlq(x86(), PWLQSpec(bits=4)))
    assert sorted(names) == sorted(expected)
    for layer in layers(converted):
        values = constant_value(converted, layer.node.args[1])
        assert max(len(row.unique()) for row in values) <= PWLQSpec(bits=4).num_levels
    assert (
        max(len(r.unique()) for r in constant_value(stock, next(layers(stock)).node.args[1])) > 24
    )


@pytest.mark.slow
@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
def test_lowered_kernels_compute_what_the_converted_model_does(net, images, export, qat):
    prepare = prepare_qat_pt2e if qat else prepare_pt2e
    quantizer = with_pwlq(x86(qat), PWLQSpec(bits=4))
    prepared = prepare(export(net, images, strict=True), quantizer)
    assert quantizer.qat is qat
    with torch.no_grad():
        if qat:
            set_training(prepared, False)
        prepared(images)
        converted = convert_pt2e(prepared)
        lowered = lower_pt2e_quantized_to_x86(converted, (images,))
        error = (lowered(images) - converted(images)).abs().max()
    steps = [n.args[1] for n in converted.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert error <= max(steps)
    records = audit(converted, lowered=lowered)
    assert {r.name for r in records.quantized} == {"stem", "conv", "fc"}
    assert {r.kernel.split(".")[0] for r in records} == {"onednn"}


def test_a_layer_left_out_keeps_the_base_s_quantizer(net, images, export):
    quantizer = with_pwlq(x86(), exclude=["fc"])
    prepared = prepare_pt2e(export(net, images, strict=True), quantizer)
    with torch.no_grad():
        prepared(images)
        records = audit(convert_pt2e(prepared))
    assert records["fc"].spec == "uniform 8b MAC/8b stored (the host's)"
    assert records["fc"].reason == "left to X86InductorQuantizer (excluded by 'fc')"
    assert records["stem"].mac_bits == 4


def test_what_the_base_leaves_float_is_told(net, images, export):
    base = x86().set_module_name_qconfig("fc", None)
    prepared = prepare_pt2e(export(net, images, strict=True), with_pwlq(base))
    with torch.no_grad():
        prepared(images)
        records = audit(convert_pt2e(prepared))
    assert records["fc"].reason == "X86InductorQuantizer leaves it float"


def test_a_base_that_quantizes_nothing_is_an_error(net, images, export):
    with pytest.raises(ValueError, match=r"(?s)nothing was quantized: all 3.*leaves it float"):
        prepare_pt2e(export(net, images, strict=True), with_pwlq(X86InductorQuantizer()))


def test_something_else_than_a_quantizer(net):
    with pytest.raises(TypeError, match="expected a torchao quantizer; got Linear"):
        with_pwlq(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="with_pwlq: spec: expected a format such as a PWLQSpec"):
        with_pwlq(x86(), 4)


def test_snapped_weights_are_those_of_the_folded_layer(net, images, export):
    prepared = prepare_pt2e(export(net, images, strict=True), with_pwlq(x86(), PWLQSpec(bits=3)))
    folded = {n.name: constant_value(prepared, n.node.args[1].args[0]) for n in layers(prepared)}
    with torch.no_grad():
        prepared(images)
        converted = convert_pt2e(prepared)
    for layer in layers(converted):
        expected = quantize(folded[layer.name], PWLQSpec(bits=3)).dequantize()
        assert torch.equal(constant_value(converted, layer.node.args[1]), expected)


class Awkward(nn.Module):
    """A computed weight, a BatchNorm that cannot be folded, a head with two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)
        self.head, self.a, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        with torch.no_grad():
            y = self.stem(x)
            y = torch.relu(y) + self.bn(y)
        return torch.cat([self.a(self.head(y)), self.b(self.head(y.flip(-1)))], 1)


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
def test_graphs_are_made_ready_for_any_base(images, export, qat):
    torch.manual_seed(0)
    model = perturb(Awkward())
    quantizer = with_pwlq(x86(qat), UniformSpec(7, "symmetric"))
    with torch.enable_grad():
        prepared = prepare(model, images, lambda m, x: export(m, x, strict=True), qat, quantizer)
    assert float_check(prepared, model, images) > 100
    converted = finish(prepared, images)
    assert sqnr(model(images), converted(images)) > 22
    records = audit(converted)
    assert {r.name for r in records.quantized} == {"stem", "head", "head.call_2"}
    assert "the layer's output is used elsewhere" in records["stem"].reason
