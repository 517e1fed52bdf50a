"""Formats other than the first two in every host: the levels chosen are those that kernels have.

Those of the table of names, so that a new one is under this test by being there.
"""

from __future__ import annotations

import pytest
import torch
from hosts import Way
from kernel_levels import CALIBRATED, check_levels, network, request_in

from zaq_plugin.pwlq.names import FORMATS, family, kind_named
from zaq_plugin.strategies import Request, apply
from zaq_plugin.student import student_of

OTHERS = [family(kind) for kind in FORMATS if kind not in ("pwlq", "uniform")]


def width(levels: str) -> int:
    """4 stored bits, or the family's nearest to it."""
    facts = FORMATS[kind_named(levels)].names[levels]
    return min(max(4, facts.low), facts.high)


@pytest.mark.parametrize("way", CALIBRATED, ids=lambda way: way.id)
@pytest.mark.parametrize("levels", OTHERS)
@pytest.mark.parametrize(
    "method", ["omse", "pwlq+gptq", pytest.param("pwlq+adaround", marks=pytest.mark.slow)]
)
def test_levels_of_every_format_are_those_of_the_kernels(
    levels: str, method: str, way: Way
) -> None:
    net, images = network(), torch.randn(48, 3, 17, 17)
    student = apply(method, net, request_in(way, images, width(levels), levels=levels)).model
    for name, layer in student_of(student).layers().items():
        assert layer.quantizer.spec.family == levels, name
    check_levels(student, way, images)


@pytest.mark.parametrize("levels", OTHERS)
def test_what_makes_no_sense_is_refused_before_anything_runs(levels: str) -> None:
    net, images = network(), torch.randn(8, 3, 17, 17)
    request = Request(width(levels), 8, levels=levels, example_inputs=(images[:2],), images=images)
    with pytest.raises(ValueError, match="chooses its own range"):
        apply("rq", net, request)
