"""Sensitivities against their definition, frontiers against all assignments there are."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from zoo_own_models import odd, tiny

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize
from zaq_timm.zoo.hosts import Request, on_host
from zaq_timm.zoo.pareto import best_within, code_bits, code_bytes, frontier
from zaq_timm.zoo.sensitivity import (
    Sensitivity,
    find_places,
    measure_sensitivities,
    widths_of,
)

IMAGES = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def quiet(stage: str, step: int, steps: int) -> None:
    """No progress."""


@torch.no_grad()
def test_each_layer_alone_is_what_is_quantized() -> None:
    torch.manual_seed(0)
    model = tiny().eval()
    model(IMAGES)
    folded, places = find_places(model, IMAGES[:2].clone())
    assert [p.name for p in places] == ["0", "3", "8"]
    before = [p.weight.clone() for p in places]
    spec = PWLQSpec(bits=2)
    costs = measure_sensitivities(folded, places, lambda _: [spec], IMAGES, 4, quiet)
    for place, weight in zip(places, before, strict=True):
        assert torch.equal(place.weight, weight)
    reference = fold_batch_norm(model, (IMAGES,))
    p = torch.softmax(reference(IMAGES).double(), 1)
    for one in costs:
        layer = reference.get_submodule(one.layer)
        float_weight = layer.weight.clone()
        tensor = quantize(float_weight, spec)
        layer.weight.copy_(tensor.dequantize())
        q = torch.softmax(reference(IMAGES).double(), 1)
        layer.weight.copy_(float_weight)
        expected = float((p * (p / q).log()).sum(1).mean())
        assert one.divergence == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert one.divergence > 0
        assert (one.numel, one.size) == (float_weight.numel(), tensor.stored_bytes)


def test_places_are_the_layers_that_the_hosts_quantize() -> None:
    for model, images in ((tiny().eval(), IMAGES), (odd().eval(), torch.randn(4, 3, 16, 16))):
        _, places = find_places(model, images[:2].clone())
        request = Request(model, PWLQSpec(bits=4), 8, {}, images, 4)
        assert {p.name for p in places} == {r.name for r in on_host("pt2e", request).layers}
    _, places = find_places(tiny().eval(), IMAGES)
    assert {p.name for p in places} == {
        r.name
        for r in on_host("fx", Request(tiny().eval(), PWLQSpec(bits=4), 8, {}, IMAGES, 4)).layers
    }


def test_hosts_store_what_sizes_say() -> None:
    _, places = find_places(tiny().eval(), IMAGES)
    overrides = {"3": PWLQSpec(bits=2), "8": UniformSpec(8)}
    converted = on_host("pt2e", Request(tiny().eval(), PWLQSpec(bits=3), 8, overrides, IMAGES, 4))
    sizes = {p.name: p.size(overrides.get(p.name, PWLQSpec(bits=3))) for p in places}
    assert {r.name: r.stored_bytes for r in converted.layers} == sizes


def test_widths_go_from_narrow_to_eight_bits() -> None:
    assert [s.stored_bits for s in widths_of(PWLQSpec(bits=4))] == [3, 4, 5, 6, 7, 8]
    uniform = widths_of(UniformSpec(4, "asymmetric", "mse"))
    assert [s.stored_bits for s in uniform] == [2, 3, 4, 5, 6, 7, 8]
    assert all(s.clip == "mse" for s in uniform)  # type: ignore[union-attr]


def drawn(layers: int, seed: int) -> list[Sensitivity]:
    draw = random.Random(seed)
    costs = []
    for index in range(layers):
        numel = draw.randint(50, 5000)
        for spec in widths_of(PWLQSpec(bits=4)):
            size = numel * spec.stored_bits // 8 + 40
            loss = draw.random() * 2.0 ** -(2 * spec.mac_bits)
            costs.append(Sensitivity(f"layer{index}", spec, numel, size, loss))
    return costs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cost", [code_bits, code_bytes])
def test_the_frontier_is_that_of_all_assignments(seed: int, cost) -> None:
    costs = drawn(4, seed)
    layers = [[s for s in costs if s.layer == f"layer{i}"] for i in range(4)]
    everything = [
        (sum(map(cost, chosen)), sum(s.divergence for s in chosen))
        for chosen in itertools.product(*layers)
    ]
    expected = sorted(
        {
            (c, d)
            for c, d in everything
            if not any((a <= c and b < d) or (a < c and b <= d) for a, b in everything)
        }
    )
    points = frontier(costs, cost)
    assert [p.cost for p in points] == [c for c, _ in expected]
    assert [p.divergence for p in points] == pytest.approx([d for _, d in expected], rel=1e-12)
    for point in points:
        chosen = [s for s in costs if point.specs[s.layer] == s.spec]
        assert (len(chosen), sum(map(cost, chosen))) == (4, point.cost)
    for limit in (points[0].cost, points[len(points) // 2].cost + 1, 10**9):
        best = min(d for c, d in everything if c <= limit)
        assert best_within(points, limit, "bits").divergence == pytest.approx(best)


def test_a_budget_below_the_narrowest_widths_is_refused() -> None:
    points = frontier(drawn(2, 0), code_bits)
    with pytest.raises(ValueError, match=r"even the narrowest widths take [\d,]+ bits"):
        best_within(points, points[0].cost - 1, "bits")
    with pytest.raises(ValueError, match="no layer has a sensitivity"):
        frontier([], code_bits)


def test_many_layers_stay_few_states_and_near_the_best() -> None:
    costs = drawn(8, 7)
    exact = frontier(costs, code_bits)
    rough = frontier(costs, code_bits, states=400)
    assert len(rough) <= 401
    for share in (0.3, 0.5, 0.7):
        limit = exact[0].cost + share * (exact[-1].cost - exact[0].cost)
        best, near = (best_within(p, limit, "bits").divergence for p in (exact, rough))
        assert best <= near <= 1.1 * best
