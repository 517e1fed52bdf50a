"""How many iterations a block gets from `zaq`: fewer where widths leave room for it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zaq_plugin.strategies import Request
from zaq_plugin.strategies.zaq import ZAQ, ZeroShot


@pytest.mark.parametrize(
    ("weights", "activations", "effort", "iterations"),
    [
        (4, 4, 1.0, 120),
        (8, None, 1.0, 120),
        (3, 8, 1.0, 300),
        (8, 3, 1.0, 300),
        (4, 8, 0.5, 60),
    ],
)
def test_narrow_widths_keep_the_presets_iterations(
    weights: int, activations: int | None, effort: float, iterations: int
) -> None:
    request = Request(
        weights, activations, example_inputs=(torch.zeros(2, 3, 8, 8),), effort=effort
    )
    stage = ZAQ.stages[-1]
    assert isinstance(stage, ZeroShot)
    work: Any = SimpleNamespace(request=request, count=8, moved="")
    assert stage.config(work).reconstruction.iterations == iterations
