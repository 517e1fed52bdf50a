"""Widths by sensitivity, and frontiers, against every assignment there is."""

import itertools
import random

import pytest
import torch
from torch import nn

from zaq_plugin.ptq.mixed_precision import (
    Sensitivity,
    allocate_widths,
    best_within,
    code_bits,
    code_bytes,
    frontier,
    kl_sensitivities,
)
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec, fake_quantize
from zaq_plugin.zero_shot.discrepancy import all_outputs


def widths(chosen: dict[str, QuantSpec]) -> tuple[int, ...]:
    return tuple(spec.stored_bits for spec in chosen.values())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [3, 4, 5.5])
def test_no_other_assignment_is_better(seed: int, bits: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 50, (5,), generator=generator).tolist()
    sensitivities = []
    for index, numel in enumerate(sizes):
        values = torch.rand(4, generator=generator).sort(descending=True).values.tolist()
        for width, value in zip((2, 3, 4, 6), values, strict=True):
            spec = UniformSpec(width)
            sensitivities.append(Sensitivity(f"l{index}", spec, numel, numel * width, value))
    chosen = widths(allocate_widths(sensitivities, bits))
    limit = bits * sum(sizes)

    def total(chosen: tuple[int, ...]) -> float:
        pairs = {(f"l{i}", width) for i, width in enumerate(chosen)}
        return sum(s.divergence for s in sensitivities if (s.layer, s.spec.stored_bits) in pairs)

    possible = [
        each
        for each in itertools.product((2, 3, 4, 6), repeat=5)
        if sum(w * n for w, n in zip(each, sizes, strict=True)) <= limit
    ]
    assert chosen in possible
    assert total(chosen) == pytest.approx(min(map(total, possible)))
    # Merging of near assignments may cost a little, and never breaks the budget.
    assert widths(allocate_widths(sensitivities, bits, states=8)) in possible


def test_a_budget_that_nothing_fits_in_is_an_error() -> None:
    sensitivities = [Sensitivity("a", UniformSpec(4), 10, 5, 0.1)]
    with pytest.raises(ValueError, match="no widths fit a mean of 3 stored bits: .* take 4.00"):
        allocate_widths(sensitivities, 3)


def test_sensitivity_is_the_divergence_of_one_quantized_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).eval()
    x = torch.randn(6, 3, 5, 5)
    spec = UniformSpec(2)
    sensitivities, inputs = kl_sensitivities(model, [spec], x, adapter=all_outputs)
    assert inputs == {"0"}
    assert {one.layer: one.numel for one in sensitivities} == {"0": 108, "3": 180}
    measured = {one.layer: one.divergence for one in sensitivities}
    p = model(x).double().softmax(1)
    for name in ("0", "3"):
        layer = model.get_submodule(name)
        original = layer.weight.detach().clone()
        layer.weight.data = fake_quantize(original, spec)
        q = model(x).double().softmax(1)
        layer.weight.data = original
        expected = float((p * (p / q).log()).sum(1).mean())
        assert measured[name] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="ReLU has no convolution or linear layer"):
        kl_sensitivities(nn.ReLU(), [spec], x, adapter=all_outputs)


def drawn(layers: int, seed: int) -> list[Sensitivity]:
    draw = random.Random(seed)
    costs = []
    for index in range(layers):
        numel = draw.randint(50, 5000)
        for spec in PWLQSpec(bits=4).widths():
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
        found = best_within(points, limit)
        assert found is not None
        assert found.divergence == pytest.approx(best)
    assert best_within(points, points[0].cost - 1) is None


def test_many_layers_stay_few_states_and_near_the_best() -> None:
    costs = drawn(8, 7)
    exact = frontier(costs, code_bits)
    rough = frontier(costs, code_bits, states=400)
    assert len(rough) <= 401
    for share in (0.3, 0.5, 0.7):
        limit = exact[0].cost + share * (exact[-1].cost - exact[0].cost)
        best, near = (best_within(p, limit).divergence for p in (exact, rough))
        assert best <= near <= 1.1 * best


def test_without_layers_there_is_no_frontier() -> None:
    with pytest.raises(ValueError, match="no layer has a sensitivity"):
        frontier([], code_bits)
