from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_plugin.reconstruction import ReconstructOptions, reconstruct
from zaq_plugin.student import reached_layers, twin
from zaq_plugin.student.fake_quantizers import set_switches

QUICK = ReconstructOptions(iterations=60, batch_size=16)


def linear_student(width: int, x: Tensor, seed: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    layer = nn.Sequential(nn.Linear(width, 1))
    fake = PWLQPerChannelFakeQuantize(UniformSpec(bits=3))
    parametrize.register_parametrization(layer[0], "weight", fake, unsafe=True)
    layer(x[:2])
    set_switches(layer, observe=False)
    return layer, twin(layer)


def neighbours(student: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weights and the levels below and above them, in float64."""
    (slot,) = reached_layers(student, x[:2])
    levels, w = slot.levels()[0].double(), slot.weight[0].double()
    low = (torch.searchsorted(levels, w, right=True) - 1).clamp(0, len(levels) - 2)
    return w, levels[low], levels[low + 1]


@pytest.mark.parametrize("exact", [True, False])
def test_result_is_one_of_all_roundings(exact: bool) -> None:
    """Of the 2^8 roundings of a layer of eight weights, whichever it finds."""
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(2)) + 2
    student, teacher = linear_student(8, x, seed=2)
    w, low, high = neighbours(student, x)
    errors = [
        float((x.double() @ (torch.where(torch.tensor(ups), high, low) - w)).square().mean())
        for ups in itertools.product((False, True), repeat=8)
    ]
    options = ReconstructOptions(iterations=300, batch_size=64, drop=0.0, exact=exact)
    (result,) = reconstruct(student, teacher, x, options)
    assert min(abs(e - result.after) for e in errors) < 1e-3 * result.after
    assert result.after <= result.before


@pytest.mark.parametrize("harden_until", [0.0, 0.9])
def test_rounding_keeps_up_with_coordinate_descent(harden_until: float) -> None:
    """Against an exact search, one weight after the other, until nothing improves."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(512, 6, generator=rng) @ torch.randn(6, 48, generator=rng)
    student, teacher = linear_student(48, x, seed=1)
    w, low, high = neighbours(student, x)
    second = x.double().t() @ x.double() / len(x)
    gap = torch.where(high - w < w - low, high, low) - w
    start = float(gap @ second @ gap)
    improved = True
    while improved:
        improved = False
        for k in range(len(w)):
            other = gap.clone()
            other[k] += (low[k] - high[k]) if gap[k] > 0 else (high[k] - low[k])
            if float(other @ second @ other) < float(gap @ second @ gap) - 1e-12:
                gap, improved = other, True
    descent = float(gap @ second @ gap)
    options = ReconstructOptions(iterations=600, batch_size=64, drop=0.0, harden_until=harden_until)
    (result,) = reconstruct(student, teacher, x, options)
    assert result.before == pytest.approx(start, rel=1e-4)
    assert descent < 0.5 * start  # there is something to find
    assert result.after < 0.5 * start


@pytest.mark.parametrize(
    "spec",
    [UniformSpec(bits=2, symmetry="asymmetric"), UniformSpec(bits=3), PWLQSpec(bits=2)],
    ids=lambda s: s.label,
)
def test_no_block_gets_worse(
    spec: QuantSpec,
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    student = make_student(tiny(), spec)
    teacher = twin(student)
    results = reconstruct(student, teacher, smooth_images(96), QUICK)
    assert [r.name for r in results] == ["stem", "stage1", "down", "stage2", "head"]
    assert all(r.after <= r.before for r in results)
    assert any(r.rerounded > 0 for r in results)
    assert sum(r.after for r in results) < sum(r.before for r in results)


def test_seed_fixes_the_result(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    def run(seed: int) -> Tensor:
        student = make_student(tiny())
        rng = torch.Generator().manual_seed(seed)
        options = ReconstructOptions(iterations=5, batch_size=8)
        reconstruct(student, twin(student), smooth_images(32), options, rng=rng)
        return student(smooth_images(4)).detach()

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_refreshed_images_reach_the_later_blocks(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    student = make_student(tiny())
    asked: list[int] = []

    def refresh(done: int) -> Tensor | None:
        asked.append(done)
        return smooth_images(24, seed=done) if done == 2 else None

    options = ReconstructOptions(iterations=2, batch_size=8)
    reconstruct(student, twin(student), smooth_images(32), options, refresh=refresh)
    assert asked == [0, 1, 2, 3, 4]


def test_options_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="iterations, batch_size and largest_block must be at"):
        ReconstructOptions(iterations=0)
    with pytest.raises(ValueError, match=r"drop and warmup must be in \[0, 1\)"):
        ReconstructOptions(drop=1.0)
    with pytest.raises(ValueError, match=r"harden_until must be in \[0, 1\]; got 1.5"):
        ReconstructOptions(harden_until=1.5)


def test_decisions_on_the_way_are_made_up_for() -> None:
    """In few iterations and with outputs far above 1, where the regulariser has no say."""
    rng = torch.Generator().manual_seed(0)
    x = 30 * torch.randn(512, 6, generator=rng) @ torch.randn(6, 48, generator=rng)
    after = {}
    for until in (0.0, 0.9):
        student, teacher = linear_student(48, x, seed=1)
        options = ReconstructOptions(
            iterations=100, batch_size=64, rounding_lr=6e-2, drop=0.0, harden_until=until
        )
        (result,) = reconstruct(student, teacher, x, options)
        after[until] = result.after / result.before
    assert after[0.9] < 0.5 * after[0.0]


def test_graphs_are_reconstructed_too(graph_student: Callable[[], nn.Module]) -> None:
    student: Any = graph_student()
    teacher = twin(student)
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    step, kind = float(student.mid_fq.scale), type(student.mid_fq)
    results = reconstruct(student, teacher, x, ReconstructOptions(iterations=80, batch_size=16))
    assert len(results) == 3
    assert all(r.after < r.before for r in results)
    assert float(student.mid_fq.scale) != step
    assert type(student.mid_fq) is kind
    error = float((student(x) - teacher(x)).square().mean().detach())
    assert error == pytest.approx(results[-1].after, rel=1e-3)
