"""Graphs are rewritten without a change of what they compute, and layers are found in them then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import perturb
from pt2e_routes import finish, float_check, prepare, sqnr
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from zaq_plugin.pwlq import UniformSpec, quantize
from zaq_plugin.strategies import Request, apply
from zaq_plugin.student.host import find_host
from zaq_pt2e import PWLQQuantizer, audit
from zaq_pt2e.casts import drop_casts
from zaq_pt2e.graph import constant_value, layers
from zaq_pt2e.parts import inline_parts
from zaq_pt2e.rewrites import bake_constants, repeat_borders, rewrite

SPEC = UniformSpec(7, "symmetric")


# ---- computed weights ----------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """Computes its weight at every call: zero mean and unit variance, times a gain."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.rand(self.out_channels) + 0.5)

    def computed(self) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(
            flat, None, None, weight=self.gain * 0.2, training=True, momentum=0.0
        )
        return weight.reshape_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.computed(), self.bias)


class ByOperators(nn.Conv2d):
    """Weight and bias with a learning rate of their own, and a fixed window over the kernel."""

    def computed(self) -> Tensor:
        window = torch.arange(1.0, 10.0).reshape(3, 3).rsqrt()
        return self.weight * 1.5 * window

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.computed(), self.bias * 2)


class Centred(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean((1, 2, 3), keepdim=True)


def parametrized(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Centred())


KINDS: dict[str, Callable[[], nn.Module]] = {
    "standardised": lambda: Standardised(3, 8, 3),
    "operators": lambda: ByOperators(3, 8, 3),
    "parametrization": lambda: parametrized(nn.Conv2d(3, 8, 3)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
    "old weight_norm": lambda: weight_norm(nn.Conv2d(3, 8, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)),
    "old spectral_norm": lambda: spectral_norm(nn.Conv2d(3, 8, 3)),
    "pruned": lambda: prune.l1_unstructured(nn.Conv2d(3, 8, 3), "weight", amount=0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_computed_weight_is_what_is_quantized(
    kind: str, qat: bool, images: Tensor, export: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[kind](), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = prepare(model, images, export, qat)
    assert float_check(prepared, model, images) > 100
    multiplied = getattr(model[0], "computed", lambda: model[0].weight)().detach()
    converted = finish(prepared, images)
    assert sqnr(model(images), converted(images)) > 22
    records = audit(converted)
    assert {r.name for r in records.quantized} == {"0", "2"}
    assert not records.skipped
    first, _ = layers(converted)
    expected = quantize(multiplied, SPEC, 0).dequantize()
    assert sqnr(expected, constant_value(converted, first.node.args[1])) > 100
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_computed_weight_takes_batch_norm_in(
    kind: str, images: Tensor, export: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    model = perturb(nn.Sequential(KINDS[kind](), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    prepared = prepare(model, images, export, False)
    assert float_check(prepared, model, images) > 100
    assert not [n for n in prepared.graph.nodes if "batch_norm" in str(n.target)]
    assert set(prepared.state_dict()) >= {"0.weight", "0.bias"}
    raw = ("weight_v", "weight_orig", "original", "gain")
    assert not [n for n in prepared.state_dict() if any(r in n for r in raw)]


def test_a_computed_weight_and_batch_norm_in_training(
    images: Tensor, export: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    model = perturb(nn.Sequential(Standardised(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3)))
    prepared = prepare(model, images, export, True)
    assert float_check(prepared, model, images) > 100
    assert prepared.get_parameter("0.weight").requires_grad
    converted = finish(prepared, images)
    assert sqnr(model(images), converted(images)) > 22


def test_a_weight_computed_at_two_calls_is_one_tensor(
    images: Tensor, export: Callable[..., Any]
) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = Standardised(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) - self.conv(x.flip(-1)).relu()

    torch.manual_seed(0)
    model = Twice().eval()
    prepared = prepare(model, images, export, False)
    assert float_check(prepared, model, images) > 100
    assert [n for n, v in prepared.state_dict().items() if v.dim() == 4] == ["conv.weight"]
    assert {layer.name for layer in layers(prepared)} == {"conv"}


def test_a_weight_tied_to_an_embedding_stays_tied(export: Callable[..., Any]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Parameter(torch.randn(8, 5)), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.fc(x @ self.table.t()), self.table.t())

    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(6, 5)
    prepared = prepare(model, x, export, True)
    assert float_check(prepared, model, x) > 100
    sizes = sorted(v.numel() for v in prepared.parameters() if v.dim() == 2)
    assert sizes == [40, 64]


@pytest.mark.parametrize("make", [lambda x, w: w * x.mean(), lambda x, w: w + torch.randn_like(w)])
def test_weights_that_depend_on_the_input_or_on_chance_stay(
    make: Callable[[Tensor, Tensor], Tensor], export: Callable[..., Any]
) -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, make(x, self.weight))

    assert bake_constants(export(Dynamic(), torch.randn(4, 5))) == []


def test_rewriting_twice_is_rewriting_once(images: Tensor, export: Callable[..., Any]) -> None:
    graph = export(nn.Sequential(Standardised(3, 4, 3)).eval(), images)
    assert rewrite(graph) == ["1 weights are computed from parameters; their values are used"]
    code = graph.code
    assert rewrite(graph) == []
    assert graph.code == code


# ---- parts under a switch ------------------------------------------------------------------------


class Frozen(nn.Module):
    """A backbone under no_grad, with a weight that its head shares or not."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.backbone(x)
            y = x * 2
        return self.head(x + y)


class Switched(Frozen):
    """The same by a function call, with a part within a part."""

    def forward(self, x: Tensor) -> Tensor:
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        x = self.backbone(x)
        with torch.autocast("cpu", enabled=False):
            x = x * 3
        torch.set_grad_enabled(before)
        return self.head(x)


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("kind", [Frozen, Switched])
def test_layers_under_no_grad_are_quantized(
    kind: type[nn.Module], qat: bool, images: Tensor, export: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    model = perturb(kind())
    with torch.enable_grad():
        prepared = prepare(model, images, export, qat)
    assert float_check(prepared, model, images) > 100
    if qat:
        trained = {n for n, p in prepared.named_parameters() if p.requires_grad}
        assert trained >= {"head.weight", "head.bias"}
        assert not [n for n in trained if n.startswith("backbone")]
    assert all(p.requires_grad for p in model.parameters())
    converted = finish(prepared, images)
    assert sqnr(model(images), converted(images)) > 22
    assert {r.name for r in audit(converted).quantized} == {"backbone.0", "head"}


class Cast(nn.Module):
    """A part under an active autocast."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 4, 3), layer

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = self.layer(x)
        return y.float()


def test_layers_under_autocast_are_refused(images: Tensor, export: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"(?s)torch\.autocast\('cpu', torch\.bfloat16\).*float32"):
        prepare(Cast(nn.Conv2d(4, 4, 1)).eval(), images, export, False)


def test_autocast_without_layers_stays_what_it_is(
    images: Tensor, export: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    model = Cast(nn.Softmax(1)).eval()
    graph = export(model, images)
    assert inline_parts(graph) == 0
    prepared = prepare(model, images, export, False)
    assert float_check(prepared, model, images) > 100


class Branches(nn.Module):
    """Layers in the branches of torch.cond."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem, self.yes, self.no = stem, nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return torch.cond(y.sum() > 0, self.yes, self.no, (y,))


def test_layers_in_branches_are_told(export: Callable[..., Any]) -> None:
    x = torch.randn(4, 3)
    with pytest.raises(
        ValueError, match=r"(?s)nothing was quantized.*sit in a part that cond runs"
    ):
        prepare(Branches(nn.Identity()).eval(), x, export, False)
    records = audit(prepare(Branches(nn.Linear(3, 3)).eval(), x, export, False))
    assert {r.name for r in records.quantized} == {"stem"}
    reason = "it sits in a part that cond runs, a graph of its own"
    assert [r.reason for r in records.skipped] == [reason] * 2


# ---- padding -------------------------------------------------------------------------------------


class Pool(nn.Module):
    """Max pooling over padding with minus infinity."""

    def __init__(self, pads: tuple[int, ...]) -> None:
        super().__init__()
        self.pads = pads

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, self.pads, value=float("-inf"))
        return nn.functional.max_pool2d(padded, 3, 2)


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 1, 1, 1), (1, 0, 0, 0)])
@torch.no_grad()
def test_repeated_borders_have_the_same_maximum(
    pads: tuple[int, ...], export: Callable[..., Any]
) -> None:
    x = torch.randn(2, 3, 9, 9) - 5
    graph = export(Pool(pads), x)
    assert repeat_borders(graph) == 1
    assert torch.equal(graph(x), Pool(pads)(x))


def test_same_pooling_has_a_range(images: Tensor, export: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Pool((0, 1, 0, 1)), nn.Conv2d(4, 4, 1)).eval()
    converted = finish(prepare(model, images, export, False), images)
    assert sqnr(model(images), converted(images)) > 22


def test_infinite_padding_that_others_read_stays(export: Callable[..., Any]) -> None:
    class Pad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pad(x, (1, 1), value=float("-inf"))

    assert repeat_borders(export(Pad(), torch.randn(2, 3, 4, 4))) == 0


class Casts(nn.Module):
    """Two that change nothing, one to another type and back, and a copy that is changed."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.sin().to(torch.float32).type_as(x)
        rounded = y.to(torch.bfloat16).to(torch.float32)
        copy = torch.ops.aten.to.dtype(y, torch.float32, False, True)
        return copy.add_(1.0) + rounded + y


def test_casts_that_change_nothing_are_taken_out(export: Callable[..., Any]) -> None:
    x = torch.randn(3, 4)
    graph = export(Casts(), x)
    assert drop_casts(graph) == 2
    assert drop_casts(graph) == 0
    assert torch.equal(graph(x), Casts()(x))
    (sine,) = (n for n in graph.graph.nodes if n.target is torch.ops.aten.sin.default)
    assert len([user for user in sine.users if "assert" not in str(user.target)]) == 3


def test_include_names_the_layer_of_a_computed_weight(
    images: Tensor, export: Callable[..., Any]
) -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 1))
    quantizer = PWLQQuantizer(SPEC, include=["0"])
    records = audit(prepare(model.eval(), images, export, False, quantizer))
    assert {r.name for r in records.quantized} == {"0"}


class Transform(nn.Module):
    """A fixed linear map, as cosine transforms are, and its output on."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.last = nn.Buffer(torch.randn(17, 17)), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.linear(x, self.matrix))


@torch.no_grad()
def test_a_weight_that_is_a_buffer_is_quantized_and_does_not_train() -> None:
    """It was an AssertionError; the user's model keeps its buffer."""
    model, images = Transform().eval(), torch.randn(8, 3, 17, 17)
    before, expected = model.matrix.clone(), model(images)
    request = Request(5, 8, example_inputs=(images[:2],), images=images, host="pt2e")
    student = apply("pwlq+gptq", model, request).model
    assert not student.get_parameter("matrix").requires_grad
    assert dict(model.named_buffers()).keys() == {"matrix"}
    assert torch.equal(model.matrix, before)
    converted = find_host("pt2e").convert(student)
    assert {record.name for record in audit(converted).quantized} >= {"last"}
    assert len(audit(converted).quantized) == 2
    assert sqnr(expected, converted(images)) > 20  # four MAC bits
