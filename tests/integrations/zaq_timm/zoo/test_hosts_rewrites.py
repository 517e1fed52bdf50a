"""Graphs are rewritten without a change of what they compute, and hosts can take them then."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from zoo_own_models import Odd, odd

from zaq_plugin.pwlq import PWLQSpec, fake_quantize
from zaq_pt2e.graph import layers
from zaq_pt2e.rewrites import rewrite
from zaq_timm.zoo.hosts import Request, on_host
from zaq_timm.zoo.measure import distance, outputs


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
    converted = on_host("pt2e", Request(model, PWLQSpec(bits=4), 8, {}, images, 4))
    assert {r.name for r in converted.layers.quantized} == {"conv", "head"}
    assert converted.layers.skipped == []
    apart = distance(outputs(model, images, 4), outputs(converted.model, images, 4))
    assert apart.sqnr_db > 15
    flat = model.conv.weight.reshape(1, 8, -1)
    computed = (flat - flat.mean(2, keepdim=True)) / (
        flat.var(2, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    weight = computed[0].reshape(model.conv.weight.shape)  # neighbours are those of its memory
    noise = fake_quantize(weight, PWLQSpec(bits=4), 0) - weight
    expected = 10 * torch.log10(weight.square().sum() / noise.square().sum())
    assert converted.layers["conv"].sqnr_db == pytest.approx(float(expected), abs=0.05)
