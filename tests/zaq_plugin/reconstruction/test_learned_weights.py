"""Learned roundings and levels against the format's own codebook."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec, quantize
from zaq_plugin.reconstruction.learned_weights import LearnedEdges, LearnedRounding
from zaq_plugin.student import QuantLayer, reached_layers, twin
from zaq_plugin.student.fake_quantizers import fake_quantizers, set_switches

SPECS: dict[str, QuantSpec] = {
    "uniform": UniformSpec(bits=3),
    "uniform-asymmetric": UniformSpec(bits=2, symmetry="asymmetric"),
    "uniform-clipped": UniformSpec(bits=3, symmetry="asymmetric", clip="mse"),
    "pwlq": PWLQSpec(bits=3, overflow="allowed"),  # any choice of levels is kept
    "pwlq-symmetric": PWLQSpec(bits=2, symmetry="symmetric", overflow="allowed"),
    "pwlq-float": PWLQSpec(bits=4, grid="float"),
    "pwlq-two-breakpoints": PWLQSpec(bits=3, breakpoints=2, overflow="allowed"),
}


@pytest.fixture(params=SPECS, ids=list(SPECS))
def slot(
    request: pytest.FixtureRequest,
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
) -> QuantLayer:
    student = make_student(tiny(), SPECS[request.param])
    return reached_layers(student, torch.zeros(2, 3, 8, 8))[0]


def table(slot: QuantLayer) -> np.ndarray:
    """(channels, levels) from the format's own codebook."""
    edges = slot.edges.detach()
    q = quantize(slot.weight, slot.quantizer.spec, slot.axis, edges=edges)
    return q.codebook.double().numpy() * q.scale.double().numpy()[:, None]


def test_levels_are_the_codebook(slot: QuantLayer) -> None:
    np.testing.assert_allclose(slot.levels().numpy(), table(slot), rtol=1e-6)


def test_soft_weight_starts_at_the_weight(slot: QuantLayer) -> None:
    rounding, levels = LearnedRounding(slot), table(slot)
    rows = slot.rows(slot.weight).double().numpy()
    cut = np.clip(rows, levels[:, :1], levels[:, -1:])
    soft = slot.rows(rounding(slot.weight)).detach().double().numpy()
    np.testing.assert_allclose(soft, cut, atol=2e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_baked_weight_is_the_chosen_neighbour(slot: QuantLayer, exact: bool) -> None:
    """Whatever was learned, every weight lands on one of its two neighbouring levels."""
    rounding, levels = LearnedRounding(slot), table(slot)
    up = torch.rand(rounding.logits.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    rounding.logits.data = torch.where(up, 3.0, -3.0)
    rows = slot.rows(slot.weight).double().numpy()
    expected = np.empty_like(rows)
    for c, row in enumerate(rows):
        for k, value in enumerate(row):
            below = max(0, min(int((levels[c] <= value).sum()) - 1, levels.shape[1] - 2))
            expected[c, k] = levels[c][below + 1] if up[c, k] else levels[c][below]
    rounding.bake(slot, exact)
    got = slot.rows(slot.quantized(slot.parameter.detach())).double().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
    if exact:
        assert torch.equal(slot.quantized(slot.parameter.detach()), slot.parameter.detach())


def test_untouched_weights_stay_untouched(slot: QuantLayer) -> None:
    """Without learning, baking keeps the float weights that lie well inside their cells."""
    before = slot.parameter.detach().clone()
    nearest = slot.quantized(before)
    rounding = LearnedRounding(slot)
    rounding.bake(slot, exact=False)
    assert torch.equal(slot.quantized(slot.parameter.detach()), nearest)
    assert (slot.parameter.detach() == before).float().mean() > 0.5


@pytest.mark.parametrize("even", [True, False], ids=["one factor", "a factor a piece"])
def test_learned_levels_are_baked_into_the_edges(slot: QuantLayer, even: bool) -> None:
    rounding = LearnedRounding(slot, learn_levels=True)
    theta = rounding.levels.edges.theta.data
    generator = torch.Generator().manual_seed(3)
    theta.copy_(0.1 if even else 0.4 * torch.rand(theta.shape, generator=generator) - 0.2)
    rounding.decide(1.0)
    target = rounding(slot.weight).detach()
    rounding.bake(slot, exact=True)
    torch.testing.assert_close(slot.quantized(slot.parameter.detach()), target, rtol=1e-5, atol=0)
    learned = rounding.levels().detach().double().numpy()
    np.testing.assert_allclose(learned, table(slot), rtol=1e-5, atol=1e-7)


def test_regulariser_vanishes_only_on_decisions(slot: QuantLayer) -> None:
    rounding = LearnedRounding(slot)
    rounding.logits.data.fill_(0.0)
    assert float(rounding.regulariser(2.0).detach()) == pytest.approx(rounding.logits.numel())
    rounding.logits.data.fill_(9.0)
    assert float(rounding.regulariser(2.0).detach()) == 0


def test_the_surest_roundings_are_decided_first_and_for_good(slot: QuantLayer) -> None:
    rounding = LearnedRounding(slot)
    with torch.no_grad():
        noise = torch.Generator().manual_seed(1)
        rounding.logits.copy_(torch.randn(rounding.logits.shape, generator=noise))
    total = rounding.logits.numel()
    soft = rounding.share().detach().clone()
    rounding.decide(0.5)
    low, high = (level.detach() for level in rounding.neighbours())
    coarse = (high - low) / (high - low).mean(1, keepdim=True)
    sure = rounding.logits.detach().abs() * coarse
    order = sure.flatten().argsort(descending=True, stable=True)
    first = torch.zeros(total, dtype=torch.bool)
    first[order[: round(total / 2)]] = True
    assert torch.equal(rounding.decided.flatten(), first)
    share = rounding.share().detach()
    assert torch.equal(share[~rounding.decided], soft[~rounding.decided])
    upper = rounding.logits[rounding.decided] >= 0
    assert torch.equal(share[rounding.decided], upper.float())
    rounding.share().sum().backward()
    assert not rounding.logits.grad[rounding.decided].any()  # type: ignore[index]
    decided = rounding.decided.clone()
    rounding.decide(0.25)
    assert torch.equal(rounding.decided, decided)
    with torch.no_grad():
        rounding.logits[~rounding.decided] *= 100
    rounding.decide(0.75)
    assert bool(rounding.decided[decided].all())
    rounding.decide(1.0)
    every = slot.rows(rounding(slot.weight)).detach()
    expected = torch.where(rounding.logits >= 0, high, low)
    torch.testing.assert_close(every, expected.detach())


def test_learned_edges_start_as_the_fake_quantizer(slot: QuantLayer) -> None:
    learned = LearnedEdges(slot)
    torch.testing.assert_close(
        learned(slot.weight).detach(), slot.quantized(slot.weight), rtol=1e-4, atol=1e-6
    )
    learned.edges.theta.data.uniform_(-3, 3)
    edges = learned.edges().detach()
    assert (edges[..., 1:] >= edges[..., :-1]).all()
    learned(slot.weight).square().sum().backward()
    assert learned.edges.theta.grad is not None
    learned.bake(slot)
    assert torch.equal(slot.edges, edges)


def test_twin_computes_the_float_function(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model = tiny()
    student = make_student(model)
    x = smooth_images(4)
    teacher = twin(student)
    torch.testing.assert_close(teacher(x), model(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(student(x), model(x), rtol=1e-2, atol=1e-2)
    assert [s.name for s in fake_quantizers(teacher)] == [s.name for s in fake_quantizers(student)]
    assert not any(p.requires_grad for p in teacher.parameters())
    set_switches(student, quantize=False)
    torch.testing.assert_close(student(x), teacher(x))


def test_a_model_without_fake_quantizers_is_refused(tiny: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="quantized: TinyResNet has no fake-quantized weights"):
        reached_layers(tiny(), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_no_choice_overflows(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    learn: bool,
    exact: bool,
) -> None:
    """Whatever was learned: few weights move, and twice equals once."""
    slot = reached_layers(make_student(tiny(), PWLQSpec(3)), torch.zeros(2, 3, 8, 8))[1]
    rounding = LearnedRounding(slot, learn_levels=learn)
    up = torch.rand(rounding.logits.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    rounding.logits.data = torch.where(up, 3.0, -3.0)
    if learn:
        rounding.levels.edges.theta.data.fill_(0.05)
    rounding.decide(1.0)
    target = rounding(slot.weight).detach()
    rounding.bake(slot, exact)
    rounded = slot.quantized(slot.parameter.detach())
    integers = slot.tensor().integer_weight().numpy().astype(int)
    rows = np.moveaxis(integers, 1, -1).reshape(len(integers), -1)
    same = rows[:, 1:] * rows[:, :-1] > 0
    assert np.abs(np.where(same, rows[:, 1:] + rows[:, :-1], 0)).max() <= 128
    assert torch.equal(slot.quantized(rounded), rounded)
    step = slot.levels().diff(dim=1).amax(1).view(-1, 1, 1, 1)
    assert bool(((rounded - target).abs() <= 0.1 * step).float().mean() > 0.95)
