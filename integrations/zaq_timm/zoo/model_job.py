"""`Job`: one model on its way through the stages, and what is known of it so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.report import Manifest
from zaq_plugin.zero_shot import FinetuneResult
from zaq_timm.zoo.format_names import weight_spec
from zaq_timm.zoo.models import Loaded
from zaq_timm.zoo.pareto import Point
from zaq_timm.zoo.sensitivity import Place, Sensitivity
from zaq_timm.zoo.settings import Settings
from zaq_timm.zoo.synthetic import Synthetic

Report = Callable[[str, int, int], None]
"""Told stage, step and steps."""


@dataclass
class Job:
    """One model on its way through the stages.

    Attributes:
        settings: the run's; ``batch`` may have been halved.
        folder: where its files go.
        report: told stage, step and steps.
        loaded: the float model.
        images: synthetic ones.
        manifest: what happened.
        places: layers whose weights can be tried, in `folded`.
        sensitivities: what was measured on them.
        points: the Pareto frontier.
        chosen: the point on it that the budget chose.
        finetuned: how zero-shot training went.
        overrides: layer name to format, where it is another than asked for.
    """

    settings: Settings
    folder: Path
    report: Report
    loaded: Loaded
    images: Synthetic
    manifest: Manifest
    folded: nn.Module | None = None
    places: list[Place] = field(default_factory=list)
    sensitivities: list[Sensitivity] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    chosen: Point | None = None
    finetuned: FinetuneResult | None = None
    overrides: dict[str, QuantSpec] = field(default_factory=dict)

    @property
    def spec(self) -> QuantSpec:
        """The format that was asked for."""
        return weight_spec(self.settings.weights)
