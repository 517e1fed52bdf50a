"""Predicted seconds: the sums are right, and what is timed is the model that is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from zaq_plugin import PWLQSpec, simulate
from zaq_timm.looking.seconds import (
    METHODS,
    Costs,
    Factors,
    Line,
    _line,
    measure_costs,
    predict_seconds,
)
from zaq_timm.zoo.settings import Settings

COSTS = Costs(
    step=Line(0.5, 0.25),
    forward=Line(1.0, 0.0),
    student=Line(2.0, 0.0),
    levels=10.0,
    call=0.001,
    element=1e-6,
    cholesky=1e-3,
    widths=(4, 10),
    weights=1000,
)
FACTORS = Factors(column=2, fed=3, cubic=5, block=7, learned=11)
SETTINGS = Settings(batch=8, calibration_images=16, test_images=8, distill_steps=4)


def test_sums_are_those_by_hand() -> None:
    seconds = predict_seconds(COSTS, SETTINGS, METHODS, FACTORS)
    images = 3 * 4 * (0.5 + 8 * 0.25)  # 24 images in batches of 8, four steps each
    shared = images + 2 * (1.0 + 2.0)
    assert seconds["rq"] == pytest.approx(shared + 2 * 2.0 + 0.2 * 10)
    both = 2 * 1.0 + 2 * 2.0
    assert seconds["dfq"] == pytest.approx(shared + both + 0.2 * 10)
    assert seconds["pwlq"] == pytest.approx(shared + 10 + 2 * 2.0 + both)
    feedback = 2 * 0.001 * 14 + 3 * 1e-6 * 1000 + 5 * 1e-3 * (4**3 + 10**3)
    assert seconds["pwlq+gptq"] == pytest.approx(seconds["pwlq"] + feedback)
    count, step = 384, 0.5 + 8 * 0.25
    trained = 49 * 4 * step + 2 * 3.0 + 10 + 48 * (2.0 + 2.0 + 1.0) + feedback
    block = 7 * step + 11 * 1e-6 * 1000
    assert count == 48 * 8
    assert seconds["zaq"] == pytest.approx(trained + 120 * block)
    narrow = predict_seconds(COSTS, replace(SETTINGS, weights="pwlq2"), ("zaq",), FACTORS)
    assert narrow["zaq"] == pytest.approx(trained + 300 * block)


def test_without_batch_norm_images_cost_nothing() -> None:
    bare = predict_seconds(replace(COSTS, step=None), SETTINGS, ("rq",), FACTORS)
    assert predict_seconds(COSTS, SETTINGS, ("rq",), FACTORS)["rq"] - bare["rq"] == 30.0


def test_a_line_goes_through_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("zaq_timm.looking.seconds.time.perf_counter", lambda: now[0])

    def run(images: int) -> None:
        now[0] += 0.01 + 0.002 * images

    line = _line(run)
    assert line.at(32) == pytest.approx(0.01 + 0.064)

    def slow(images: int) -> None:
        now[0] += images

    assert _line(slow) == Line(0.0, 1.0)


def test_costs_are_the_models() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    student = simulate(model, PWLQSpec(bits=4))
    costs = measure_costs(model, student, (3, 8, 8), levels=0.5)
    assert costs.step is None  # it has no BatchNorm
    assert (costs.widths, costs.weights, costs.levels) == ((27, 288), 27 * 8 + 288 * 5, 0.5)
    assert min(costs.call, costs.element, costs.cholesky, costs.forward.at(2)) > 0
    normed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    step = measure_costs(normed, simulate(normed, PWLQSpec()), (3, 8, 8), 0.5).step
    assert step is not None
    assert step.at(2) > costs.forward.at(2)
