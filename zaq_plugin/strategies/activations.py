"""Which ranges the activations get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from zaq_plugin.observers import MinMaxObserver, TopKMedianObserver
from zaq_plugin.ptq.range_observers import LeastCubesObserver, LeastSquaresObserver
from zaq_plugin.strategies.stage import Stage, Work

FEW = 4
"""Bits at which levels are few, see `ActivationsByWidth`."""


class ObservedActivations(Stage):
    """Ranges from calibration images, by an observer."""

    slot = "activations"
    observer: ClassVar[Callable[..., Any]]

    def prepare(self, work: Work) -> None:
        """Choose the observer."""
        work.observer = type(self).observer

    def finish(self, work: Work) -> None:
        """Run the images through the float model, and freeze the ranges."""
        if work.request.activation_bits is not None:
            work.calibrate()


class MinMaxActivations(ObservedActivations):
    """Smallest and largest value of all images."""

    name = "minmax-activations"
    observer = MinMaxObserver


class TopKActivations(ObservedActivations):
    """Median of the ten smallest and largest values of a batch (PWLQ, section 4)."""

    name = "top-k"
    observer = TopKMedianObserver


class LeastSquaresActivations(ObservedActivations):
    """The clip of least squared error of each batch."""

    name = "mse-activations"
    observer = LeastSquaresObserver


class LeastCubesActivations(ObservedActivations):
    """The clip of least cubed error of each batch."""

    name = "cube-activations"
    observer = LeastCubesObserver


class ActivationsByWidth(ObservedActivations):
    """Medians of extremes (PWLQ, section 4); at `FEW` bits and fewer the clip of least cubed error.

    Where a step is coarse a clip below the extremes pays. Least squares clip too much on some
    networks and medians too little on others; benchmarks/results/field_choice.md has both.
    """

    name = "activations-by-width"

    def prepare(self, work: Work) -> None:
        """Choose the observer."""
        bits = work.request.activation_bits
        few = bits is not None and bits <= FEW
        work.observer = LeastCubesObserver if few else TopKMedianObserver
