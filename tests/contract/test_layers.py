"""Layers are the same in every host: names, weights, levels, products, order."""

from __future__ import annotations

from typing import Any

import torch
from hosts import Way, every_host
from small_networks import ORDER, Residual, every_network, inputs, network, student_from
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, fold_batch_norm
from zaq_plugin.student import QuantLayer, student_of
from zaq_plugin.student.walk import walk_layers

SIMULATED = Way("simulated")


@every_host
@every_network
def test_names_weights_and_levels(way: Way, kind: type[nn.Module]) -> None:
    x = inputs(kind)
    student = student_from(way, kind)
    calibrate(student, [x])
    layers = student_of(student).layers()
    folded = fold_batch_norm(network(kind), (x[:2],))
    named = {name for name, m in folded.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert set(layers) == named == set(ORDER[kind])
    reference = student_of(student_from(SIMULATED, kind)).layers()
    for name, layer in layers.items():
        module: Any = folded.get_submodule(name)
        assert layer.name == name
        assert layer.axis == 0
        assert float((layer.weight - module.weight.detach()).abs().max()) <= 1e-5, name
        assert layer.bias is not None
        assert layer.bias.shape == (module.weight.shape[0],)
        assert torch.equal(layer.tensor().dequantize(), layer.quantized()), name
        edges = reference[name].edges * 0.9
        assert not torch.equal(layer.edges, edges)
        layer.set_edges(edges)
        assert torch.equal(layer.edges, edges), name
        other = reference[name]
        other.set_edges(edges)
        assert torch.equal(layer.levels(), other.levels()), name
        same = layer.quantized(module.weight.detach())
        assert torch.equal(same, other.quantized(module.weight.detach())), name
        expected = (same.flatten(1)[:, :, None] - layer.levels()[:, None]).abs().amin(-1)
        assert float(expected.max()) == 0, f"{name}: a weight off the levels"


@every_host
@every_network
def test_what_is_written_is_what_the_fake_quantizer_sees(way: Way, kind: type[nn.Module]) -> None:
    student = student_from(way, kind)
    calibrate(student, [inputs(kind)])
    for name, layer in student_of(student).layers().items():
        target = layer.weight.flip(0) * 0.5
        layer.write(target)
        again = student_of(student).layers()[name]
        assert float((again.weight - target).abs().max()) <= 1e-6, name


CHAIN = ["stem.0", "first", "second", "fc"]


def called_by_the_graph(student: Any) -> list[str]:
    """Layers of a graph in the order of its operators."""
    from zaq_pt2e.graph import layers

    return [layer.name for layer in layers(student)]


@every_host
@every_network
def test_walk_is_in_order_of_execution(way: Way, kind: type[nn.Module]) -> None:
    x = inputs(kind)
    student = student_from(way, kind)
    calibrate(student, [x])
    for memory in (1 << 30, 0):
        seen: list[tuple[str, int]] = []

        class Work:
            def __init__(self, layer: QuantLayer) -> None:
                self.name, self.samples = layer.name, 0

            def add(self, x: Tensor) -> None:
                self.samples += len(x)

            def finish(self) -> None:
                seen.append((self.name, self.samples))  # noqa: B023

        order = walk_layers(
            student_of(student), x.split(6), lambda layer, _: Work(layer), what="test",
            memory=memory,
        )  # fmt: skip
        assert seen == [(name, len(x)) for name in order]
        if way == Way("pt2e", train=True):
            # The host's fusion for training may move branches past each other in its graph.
            assert sorted(order) == sorted(ORDER[kind])
            assert order == called_by_the_graph(student)
            if kind is Residual:
                assert [name for name in order if name != "short"] == CHAIN
                assert order.index("stem.0") < order.index("short") < order.index("fc")
        else:
            assert order == ORDER[kind]


class Geometries(nn.Module):
    """Layers with every geometry that torch has, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.oblong = nn.Conv2d(3, 8, (3, 2), (2, 1), (1, 2), (1, 2), bias=False)
        self.same = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=4)
        self.transposed = nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, groups=2)
        self.wide = nn.ConvTranspose2d(6, 6, (2, 3), 1, (0, 1), dilation=(2, 1), bias=False)
        self.line = nn.Conv1d(6, 4, 5, 3, 2)
        self.line_back = nn.ConvTranspose1d(4, 4, 3, 2, 1)
        self.last = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.transposed(self.same(self.oblong(x)))).flatten(2)
        return self.last(self.line_back(self.line(x)).transpose(1, 2))


def product(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What torch's functional makes of it, with the float module's geometry."""
    if isinstance(module, nn.Linear):
        return nn.functional.linear(x, weight)
    rank = weight.dim() - 2
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        transposed: Any = getattr(nn.functional, f"conv_transpose{rank}d")
        return transposed(x, weight, None, module.stride, module.padding,
                          module.output_padding, module.groups, module.dilation)  # fmt: skip
    convolve: Any = getattr(nn.functional, f"conv{rank}d")
    return convolve(x, weight, None, module.stride, module.padding, module.dilation, module.groups)


@every_host
def test_affine_is_the_layers_product(way: Way) -> None:
    torch.manual_seed(0)
    model = Geometries().eval()
    x = torch.randn(2, 3, 9, 8)
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name, module in model.named_children()
    ]
    model(x)
    for handle in handles:
        handle.remove()
    student = way.prepare(model, (x,))
    layers = student_of(student).layers()
    assert list(seen) == [name for name, _ in model.named_children()]
    assert set(layers) == set(seen)
    generator = torch.Generator().manual_seed(2)
    for name, module in model.named_children():
        weight = torch.randn(layers[name].weight.shape, generator=generator)
        assert weight.shape == module.weight.shape
        expected = product(module, seen[name].detach(), weight)
        output = layers[name].affine(seen[name].detach(), weight)
        assert torch.allclose(output, expected, atol=1e-5), name
        wide = layers[name].affine(seen[name].detach().double(), weight.double())
        assert wide.dtype == torch.float64
        assert torch.allclose(wide.float(), expected, atol=1e-5), name
