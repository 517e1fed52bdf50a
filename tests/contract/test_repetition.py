"""Calibrating and correcting twice is calibrating and correcting once, and state can be stored."""

from __future__ import annotations

import torch
from hosts import Way, assert_same, biases, every_host, ranges
from small_networks import every_network, inputs, student_from
from torch import nn

from zaq_plugin.ptq import calibrate, correct_bias


@every_host
@every_network
def test_calibrating_and_correcting_twice_is_once(way: Way, kind: type[nn.Module]) -> None:
    x = inputs(kind)
    batches = [x[:10], x[10:]]
    student = student_from(way, kind)
    calibrate(student, batches)
    calibrated = ranges(student)
    untouched = biases(student)
    correct_bias(student, batches)
    corrected, output = biases(student), student(x).detach()
    moved = max(float((corrected[n] - untouched[n]).abs().max()) for n in corrected)
    assert moved > 1e-4, "nothing was corrected"

    correct_bias(student, batches)
    assert_same(corrected, biases(student), 1e-6)
    assert float((student(x).detach() - output).abs().max()) <= 1e-6

    once = student_from(way, kind)
    calibrate(once, batches)
    calibrate(once, batches)
    assert_same(calibrated, ranges(once), 0)
    assert_same(untouched, biases(once), 0)


@every_host
@every_network
def test_other_data_in_between_is_forgotten(way: Way, kind: type[nn.Module]) -> None:
    x, others = inputs(kind), inputs(kind, 16, seed=7) * 3
    student = student_from(way, kind)
    calibrate(student, [x])
    expected = ranges(student)
    correct_bias(student, [x])
    corrected = biases(student)
    correct_bias(student, [others])
    correct_bias(student, [x])
    assert_same(corrected, biases(student), 1e-6)

    student = student_from(way, kind)
    calibrate(student, [others])
    assert any(not torch.equal(a, expected[n]) for n, a in ranges(student).items())
    calibrate(student, [x])
    assert_same(expected, ranges(student), 0)


@every_host
@every_network
def test_a_stored_state_makes_the_same_student(way: Way, kind: type[nn.Module]) -> None:
    x = inputs(kind)
    student = student_from(way, kind)
    calibrate(student, [x])
    correct_bias(student, [x])
    expected = student(x).detach()
    again = student_from(way, kind, seed=5)
    calibrate(again, [x * 2])
    assert float((again(x).detach() - expected).abs().max()) > 1e-2
    fresh = student_from(way, kind, seed=5)
    for receiver in (fresh, again):
        receiver.load_state_dict(student.state_dict(), strict=True)
        assert torch.equal(receiver(x), expected)
        correct_bias(receiver, [x])  # what was taken out is remembered
        assert_same(biases(student), biases(receiver), 1e-6)
