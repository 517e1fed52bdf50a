"""Which ranges the activations get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.nn.utils import parametrize

from zaq_plugin.observers import MinMaxObserver, TopKMedianObserver
from zaq_plugin.ptq.mixed_precision import kl_divergence
from zaq_plugin.ptq.range_observers import LeastCubesObserver, LeastSquaresObserver
from zaq_plugin.strategies.stage import Stage, Work
from zaq_plugin.student import student_of

FEW = 4
"""Bits at which levels are few, see `ActivationsByWidth`."""
POWERS = (2, 3, 4)
"""Of the error, from clips that cut off more to clips that cut off less."""


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
    """Medians of extremes (PWLQ, section 4); at `FEW` bits and fewer a clip, chosen by outputs.

    Where a step is coarse, a clip below the extremes pays, and how much of a few large values may
    be cut off differs from network to network. Clips of least mean ``|error|^p`` are tried for
    every p of `POWERS`, the larger p, the less is cut off; the p whose student is closest to the
    float model on the calibration images wins, for the whole network.
    """

    name = "activations-by-width"

    def prepare(self, work: Work) -> None:
        """Choose the observer."""
        work.observer = LeastCubesObserver if _few(work) else TopKMedianObserver

    def finish(self, work: Work) -> None:
        """Run the images through the float model, once for each power, and freeze the ranges."""
        observers = [m for m in work.student.modules() if isinstance(m, LeastCubesObserver)]
        if not observers:
            super().finish(work)
            return
        distances: dict[int, float] = {}

        def calibrate(power: int) -> None:
            for observer in observers:
                observer.power = power
            work.calibrate()

        for power in POWERS:
            calibrate(power)
            distances[power] = _distance(work)
        best = min(distances, key=distances.__getitem__)
        if best != POWERS[-1]:
            calibrate(best)
        told = ", ".join(f"{value:.4g} at {power}" for power, value in distances.items())
        work.notes.append(f"activations clipped by least |error|^{best} (divergence {told})")


def _few(work: Work) -> bool:
    bits = work.request.activation_bits
    return bits is not None and bits <= FEW


@torch.no_grad()
def _distance(work: Work) -> float:
    """Of the student's outputs from the float model's, on the calibration images."""
    view, adapter = student_of(work.student), work.request.adapter
    batches = list(work.batches())
    with view.evaluating():
        targets = [adapter(work.teacher(batch.clone())) for batch in batches]
        with parametrize.cached():  # of one model only: torch takes its copies for itself
            answers = [adapter(work.student(batch.clone())) for batch in batches]
    triples = zip(batches, targets, answers, strict=True)
    parts = [len(batch) * kl_divergence(wanted, got) for batch, wanted, got in triples]
    return sum(parts) / sum(map(len, batches))
