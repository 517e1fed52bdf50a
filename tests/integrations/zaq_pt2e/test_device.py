"""What devices share: grids behind every layer, int8 in place of uint8, weights, tolerances."""

import copy

import numpy as np
import pytest
import torch
from networks import perturb
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import zaq_pt2e
from zaq_plugin.ptq import calibrate
from zaq_plugin.pwlq import PWLQSpec, quantize
from zaq_plugin.student.host import Assignment
from zaq_pt2e.device.grids import complete, output_step, without_grid
from zaq_pt2e.device.host import DeviceHost
from zaq_pt2e.device.signed import is_converted, refuse, to_int8, to_uint8
from zaq_pt2e.device.verdict import run_graph, tolerance
from zaq_pt2e.device.weights import int8_weights, missing

PER_TENSOR = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


class Gated(nn.Module):
    """A gate that multiplies, a concatenation, an activation that no kernel fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.gate = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(16, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.fc(torch.relu(self.wide(torch.cat([x, y], 1))).mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gated() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Gated())


@pytest.mark.slow
@pytest.mark.parametrize("last", [nn.Identity(), nn.ReLU(), nn.Hardswish()])
def test_a_batch_norm_in_training_belongs_to_its_layer(images: Tensor, last: nn.Module) -> None:
    """A grid between the two keeps the host from folding them: the layer is no int8 layer then."""
    torch.manual_seed(0)
    model = perturb(nn.Sequential(nn.Conv2d(3, 8, 3, bias=True), nn.BatchNorm2d(8), last))
    host = DeviceHost()
    prepared = host.prepare(model, (images[:2],), Assignment(PWLQSpec()), train=True).model
    calibrate(prepared, [images])
    converted = host.convert(prepared)
    assert isinstance(converted, GraphModule)
    targets = [n.target for n in converted.graph.nodes if n.op == "call_function"]
    assert torch.ops.aten.batch_norm.default not in targets
    (conv,) = (n for n in converted.graph.nodes if n.target is torch.ops.aten.conv2d.default)
    behind = next(iter(conv.users))
    fused = isinstance(last, nn.ReLU)
    assert behind.target is (torch.ops.aten.relu.default if fused else PER_TENSOR)
    assert isinstance(conv.args[2], torch.fx.Node)
    assert conv.args[2].op == "get_attr"


def by_host(model: nn.Module, images: Tensor) -> GraphModule:
    host = DeviceHost()
    prepared = host.prepare(model, (images[:2],), Assignment(PWLQSpec())).model
    calibrate(prepared, [images])
    converted = host.convert(prepared)
    assert isinstance(converted, GraphModule)
    return converted


def by_pt2e(model: nn.Module, images: Tensor) -> GraphModule:
    graph = torch.export.export(model, (images,)).module()
    prepared = prepare_pt2e(graph, zaq_pt2e.PWLQQuantizer())
    zaq_pt2e.calibrate(prepared, [images])
    return convert_pt2e(prepared)


def test_every_layer_of_a_devices_host_is_integer_from_input_to_output(
    gated: nn.Module, images: Tensor
) -> None:
    converted = by_host(gated, images)
    assert without_grid(converted) == {}
    assert output_step(converted) > 0
    assert {n.args[5] for n in converted.graph.nodes if n.target is PER_TENSOR} == {torch.int8}
    for node in converted.graph.nodes:
        if node.target is torch.ops.aten.mul.Tensor:
            assert all(x.target is DEQUANTIZE for x in node.all_input_nodes)
        if node.target is torch.ops.aten.cat.default:
            grids = {x.args[1:] for x in [*node.args[0], *(u for u in node.users)]}
            assert len(grids) == 1
    with torch.no_grad():
        apart = (converted(images) - gated(images)).abs().max()
    assert apart < 0.2 * gated(images).std()


def test_a_graph_of_the_pt2e_route_is_completed(gated: nn.Module, images: Tensor) -> None:
    plain = by_pt2e(gated, images)
    assert set(without_grid(plain).values()) == {"stem.0", "gate", "wide", "fc"}
    with pytest.raises(ValueError, match=r"test: the output of stem\.0 and of 3 more has no grid"):
        complete(copy.deepcopy(plain), None, "test")
    done = copy.deepcopy(plain)
    assert complete(done, [images], "test") == 4
    assert without_grid(done) == {}
    assert complete(done, [images], "test") == 0
    span = plain(images).max() - plain(images).min()
    assert (done(images) - plain(images)).abs().max() <= 0.03 * span


def test_uint8_and_int8_are_the_same_function(gated: nn.Module, images: Tensor) -> None:
    plain = by_pt2e(gated, images)
    moved = to_int8(plain, "test")
    back = to_uint8(moved)
    assert torch.equal(moved(images), plain(images))
    assert torch.equal(back(images), plain(images))
    grids = [[n.args[1:] for n in g.graph.nodes if n.target is PER_TENSOR] for g in (plain, back)]
    assert grids[0] == grids[1]
    assert is_converted(plain)
    assert not is_converted(gated)


def test_what_devices_cannot_compute_is_refused(gated: nn.Module, images: Tensor) -> None:
    graph = torch.export.export(gated, (images,)).module()
    narrow = zaq_pt2e.PWLQQuantizer(overrides={"wide": (PWLQSpec(), 6)})
    prepared = prepare_pt2e(copy.deepcopy(graph), narrow)
    zaq_pt2e.calibrate(prepared, [images])
    with pytest.raises(ValueError, match=r"phone: wide takes 6-bit activations \(0 to 63\)"):
        refuse(convert_pt2e(prepared), "phone")
    half = prepare_pt2e(copy.deepcopy(graph), zaq_pt2e.PWLQQuantizer(activations=None))
    zaq_pt2e.calibrate(half, [images])
    with pytest.raises(ValueError, match=r"stem\.0 and 3 more has quantized weights but a float"):
        refuse(convert_pt2e(half), "phone")
    with pytest.raises(ValueError, match="no layer of this model has int8 weights"):
        refuse(graph, "phone")


def test_weights_are_told_bit_for_bit(gated: nn.Module, images: Tensor) -> None:
    weights = int8_weights(by_pt2e(gated, images))
    assert [w.name for w in weights] == ["stem.0", "gate", "wide", "fc"]
    packed = quantize(gated.get_parameter("fc.weight").detach(), PWLQSpec())
    assert np.array_equal(weights[-1].codes, packed.integer_weight().numpy())
    assert np.array_equal(weights[-1].scales, packed.scale.numpy())
    orders: dict[int, list[tuple[int, ...]]] = {4: [(0, 2, 3, 1)]}
    there = [
        (w.codes.transpose(0, 2, 3, 1) if w.codes.ndim == 4 else w.codes, w.scales) for w in weights
    ]
    assert missing(weights, there, orders) == []
    other = [(codes.copy(), scales) for codes, scales in there]
    other[-1][0][0, 0] ^= 1
    assert missing(weights, other, orders) == [
        "fc: its weight is not in the file; the nearest differs in 1 integers."
    ]
    scaled = [*there[:-1], (there[-1][0], there[-1][1] * 2)]
    assert missing(weights, scaled, orders) == [
        "fc: its integers are in the file, with other scales."
    ]


def test_tolerance_is_what_a_step_of_the_input_moves(gated: nn.Module, images: Tensor) -> None:
    converted = by_host(gated, images)
    allowed = tolerance(converted, (images,))
    assert allowed >= output_step(converted)
    step = next(n.args[1] for n in converted.graph.nodes if n.target is PER_TENSOR)
    moved = run_graph(converted, (images + 0.2 * step,))[0]
    assert (moved - run_graph(converted, (images,))[0]).abs().max() <= allowed
    assert (run_graph(converted, (-images,))[0] - moved).abs().max() > allowed


class Scaled(nn.Module):
    """A branch that a parameter multiplies: the host stores its codes, not a quantize node."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.own = nn.Conv2d(3, 4, 3), nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.other = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return torch.relu(x + self.own * self.other(x))


def test_constants_that_are_stored_as_codes_move_along(images: Tensor) -> None:
    torch.manual_seed(0)
    converted = by_host(Scaled().eval(), images)
    signed = to_int8(converted, "a test")
    expected = converted(images)
    assert torch.equal(signed(images), expected)
    assert torch.equal(to_int8(signed, "a test")(images), expected)  # twice is once
    assert torch.equal(to_uint8(signed)(images), expected)
