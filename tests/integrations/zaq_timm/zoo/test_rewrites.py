"""Graphs are rewritten without a change of what they compute, and hosts can take them then."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from zoo_own_models import Odd, odd

from zaq_plugin.pwlq import PWLQSpec, fake_quantize
from zaq_pt2e.graph import layers
from zaq_timm.zoo._compat import WRAPPERS, inline_wrapped_parts
from zaq_timm.zoo.hosts import Request, on_pt2e
from zaq_timm.zoo.measure import distance, outputs
from zaq_timm.zoo.rewrites import fold_computed_weights, repeat_borders, rewrite


def exported(model: nn.Module, images: torch.Tensor) -> GraphModule:
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    graph = torch.export.export(model, (images,), dynamic_shapes=shapes).module()
    assert isinstance(graph, GraphModule)
    return graph


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_everything_at_once_computes_the_same(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = odd().eval()
    graph = exported(model, images)
    assert {layer.name for layer in layers(graph)} == {"conv"}  # the head is in a part of its own
    notes = rewrite(graph)
    assert {layer.name for layer in layers(graph)} == {"conv", "head"}
    assert notes == [
        "1 weights are computed from parameters; their values are used",
        "padding with minus infinity before max pooling repeats the border instead",
    ]
    more = torch.randn(7, 3, 16, 16)
    torch.testing.assert_close(graph(more), model(more), rtol=0, atol=1e-6)
    assert not any("batch_norm" in str(n.target) for n in graph.graph.nodes)
    assert not any(float("-inf") in n.args for n in graph.graph.nodes)


@torch.no_grad()
def test_a_computed_weight_is_what_gets_quantized(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = odd().eval()
    assert isinstance(model, Odd)
    made = on_pt2e(Request(model, PWLQSpec(bits=4), 8, {}, images, 4))
    assert {r.name for r in made.layers.quantized} == {"conv", "head"}
    assert made.layers.skipped == []
    apart = distance(outputs(model, images, 4), outputs(made.model, images, 4))
    assert apart.sqnr_db > 15
    flat = model.conv.weight.reshape(1, 8, -1)
    computed = (flat - flat.mean(2, keepdim=True)) / (
        flat.var(2, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    noise = fake_quantize(computed[0], PWLQSpec(bits=4), 0) - computed[0]
    expected = 10 * torch.log10(computed.square().sum() / noise.square().sum())
    assert made.layers["conv"].sqnr_db == pytest.approx(float(expected), abs=0.05)


def test_the_wrapping_operators_are_still_there() -> None:
    """Their names and the order of their arguments are no promise of torch's."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                y = self.layer(x)
                z = y * 2
            return y + z

    model, x = Wrapped(), torch.randn(3, 4)
    graph = exported(model, x)
    used = [n.target.name() for n in graph.graph.nodes if "wrap" in str(n.target)]
    assert used == ["wrap_with_autocast"]
    assert set(used) <= set(WRAPPERS)
    assert inline_wrapped_parts(graph) == 1
    torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 1, 1, 1), (1, 0, 0, 0)])
@torch.no_grad()
def test_repeated_borders_have_the_same_maximum(pads: tuple[int, ...]) -> None:
    class Pool(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.max_pool2d(nn.functional.pad(x, pads, value=float("-inf")), 3, 2)

    x = torch.randn(2, 3, 9, 9) - 5
    graph = exported(Pool(), x)
    assert repeat_borders(graph) == 1
    assert torch.equal(graph(x), Pool()(x))


def test_infinite_padding_that_others_read_stays() -> None:
    class Pad(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.pad(x, (1, 1), value=float("-inf"))

    assert repeat_borders(exported(Pad(), torch.randn(2, 3, 4, 4))) == 0


def test_weights_that_depend_on_the_input_stay() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, x[0].outer(x[0]))

    graph = exported(Dynamic(), torch.randn(4, 5))
    assert fold_computed_weights(graph) == []
