"""The hardware model against the paper's ratios, and against sums done by hand."""

import dataclasses

import pytest
import torch
from torch import nn

from zaq_plugin.pwlq import PWLQSpec, UniformSpec
from zaq_plugin.report.hardware import (
    PAPER,
    PUBLISHED,
    Accelerator,
    LayerWork,
    energy_ratio,
    estimate,
    fit,
    predictions,
    speed_up,
    workload,
)

ONE = LayerWork("one", groups=1, reduction=64, outputs=64, positions=100)


def resnet50() -> list[LayerWork]:
    """ResNet-50's layers (He et al., 2016, table 1), written down here: no model is needed."""
    work = [LayerWork("stem", 1, 3 * 49, 64, 112 * 112)]
    inputs = 64
    for stage, (blocks, width, size) in enumerate(
        [(3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)]
    ):
        for block in range(blocks):
            strided = stage > 0 and block == 0
            before = size * 2 if strided else size
            work.append(LayerWork("a", 1, inputs, width, before**2))
            work.append(LayerWork("b", 1, 9 * width, width, size**2))
            work.append(LayerWork("c", 1, width, 4 * width, size**2))
            if block == 0:
                work.append(LayerWork("short", 1, inputs, 4 * width, size**2))
            inputs = 4 * width
    work.append(LayerWork("fc", 1, 2048, 1000, 1))
    return work


def test_the_workload_is_what_a_model_multiplies() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    ).train()
    work = workload(model, (torch.zeros(2, 3, 8, 8),))
    assert [w.macs for w in work] == [2 * 16 * 8 * 27, 2 * 16 * 8 * 9, 2 * 1280]
    assert [w.weights for w in work] == [216, 72, 1280]
    assert [w.groups for w in work] == [1, 8, 1]
    assert model.training, "the model's mode is as it was"
    assert not any(m._forward_hooks for m in model.modules())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no convolution or linear layer was called"):
        workload(nn.ReLU(), (torch.zeros(1),))


def test_time_is_the_longer_of_computing_and_fetching() -> None:
    slow = dataclasses.replace(PAPER, bandwidth=1.0)
    assert estimate([ONE], UniformSpec(8), accelerator=slow).seconds == 64 * 64
    assert estimate([ONE], UniformSpec(8), accelerator=slow).memory_bound == 1
    fast = dataclasses.replace(PAPER, bandwidth=1e18)
    cost = estimate([ONE], UniformSpec(8), accelerator=fast)
    assert cost.seconds == pytest.approx(100 / PAPER.clock)
    assert cost.memory_bound == 0


def test_the_array_is_filled_in_whole_tiles() -> None:
    fast = dataclasses.replace(PAPER, bandwidth=1e18)
    wider = dataclasses.replace(ONE, reduction=65)
    ratio = [estimate([w], UniformSpec(8), accelerator=fast).seconds for w in (wider, ONE)]
    assert ratio[0] == 2 * ratio[1]


def test_energy_is_the_sum_of_its_parts() -> None:
    costs = {"multiply_pj": 1e-12, "add_pj": 1e-12, "on_chip_pj": 1e-12, "dram_pj": 1e-12}
    macs, weights = ONE.macs, ONE.weights
    expected = {
        "multiply_pj": macs * 4 * 8 / 64,
        "add_pj": macs * 1.1,
        "on_chip_pj": 100 * 64 * 1 + 100 * 64 * 8,
        "dram_pj": weights * 5 / 8,
    }
    for name, sum_ in expected.items():
        machine = Accelerator(**{**costs, name: 1.0})
        cost = estimate([ONE], PWLQSpec(bits=4), accelerator=machine)
        assert cost.joules == pytest.approx(sum_ * 1e-12, rel=1e-6), name
        assert cost.weight_bytes == weights * 5 / 8


def test_formats_pay_for_their_stored_bits_and_multiply_with_their_mac_bits() -> None:
    work = resnet50()
    pwlq, four, five = (
        estimate(work, spec) for spec in (PWLQSpec(bits=4), UniformSpec(4), UniformSpec(5))
    )
    assert pwlq.weight_bytes == five.weight_bytes > four.weight_bytes
    assert pwlq.seconds == five.seconds > four.seconds
    assert four.joules < pwlq.joules


def test_the_fit_reproduces_the_uniform_row_and_is_the_default() -> None:
    work = resnet50()
    machine = fit(work)
    assert machine.clock == pytest.approx(PAPER.clock, rel=0.01)
    assert machine.on_chip_pj == pytest.approx(PAPER.on_chip_pj, rel=0.01)
    assert 2.5 <= machine.on_chip_pj <= 12.5, "between Horowitz' memories of 32 KB and 1 MB"
    for bandwidth in (8, 16):
        published = PUBLISHED[f"speed-up at {bandwidth} GB/s"]["uniform 4"]
        there = dataclasses.replace(machine, bandwidth=bandwidth * 1e9)
        assert speed_up(work, UniformSpec(4), there) == pytest.approx(published, rel=0.015)
    assert energy_ratio(work, UniformSpec(4), machine) == pytest.approx(0.73, rel=0.001)


def test_the_papers_pwlq_row_is_predicted_within_two_per_cent() -> None:
    ratios = predictions(resnet50())
    assert set(ratios) == set(PUBLISHED)
    for name, (published, predicted) in ratios.items():
        assert predicted == pytest.approx(published, rel=0.02), name


@pytest.mark.parametrize(
    ("change", "text"),
    [({"rows": 0}, "rows must be positive"), ({"bandwidth": float("nan")}, "bandwidth must be")],
)
def test_impossible_machines_are_refused(change: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Accelerator(**change)  # type: ignore[arg-type]


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(TypeError, match="must be a format such as a PWLQSpec; got 4"):
        estimate([ONE], 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activations must have 1 to 16 bits; got 0"):
        estimate([ONE], UniformSpec(4), 0)
    with pytest.raises(ValueError, match="no work was given"):
        estimate([], UniformSpec(4))
