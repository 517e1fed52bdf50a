"""The twin of a student is the float model, whatever has been done to the student."""

from __future__ import annotations

from hosts import Way, every_host, sqnr
from small_networks import every_network, inputs, network, student_from
from torch import nn

from zaq_plugin.ptq import calibrate, compensate_rounding, correct_bias
from zaq_plugin.student import twin


@every_host
@every_network
def test_twin_is_the_float_model(way: Way, kind: type[nn.Module]) -> None:
    x, unseen = inputs(kind), inputs(kind, 8, seed=3) * 2
    expected = network(kind)(unseen).detach()
    student = student_from(way, kind)
    assert sqnr(expected, twin(student)(unseen)) > 100, "before calibration"
    calibrate(student, [x])
    correct_bias(student, [x])
    assert sqnr(expected, student(unseen)) < 60, "the student is quantized"
    early = twin(student)
    assert sqnr(expected, early(unseen)) > 100
    compensate_rounding(student, [x], early)
    assert sqnr(expected, early(unseen)) > 100, "a twin shares nothing with its student"
    assert sqnr(expected, student(unseen)) < 60
