"""`Job`: one model's work: what a worker was given, and what it has loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.report import Manifest
from zaq_timm.zoo.images import Synthetic
from zaq_timm.zoo.light import weight_spec
from zaq_timm.zoo.models import Loaded
from zaq_timm.zoo.settings import Settings

Report = Callable[[str, int, int], None]
"""Told stage, step and steps."""


@dataclass(frozen=True)
class Job:
    """One model's work; what its stages find out they hand on themselves.

    Attributes:
        settings: the run's; ``batch`` may have been halved.
        folder: where its files go.
        report: told stage, step and steps.
        loaded: the float model.
        images: synthetic ones.
        manifest: what happened.
    """

    settings: Settings
    folder: Path
    report: Report
    loaded: Loaded
    images: Synthetic
    manifest: Manifest

    @property
    def spec(self) -> QuantSpec:
        """The format that was asked for."""
        return weight_spec(self.settings.weights)
