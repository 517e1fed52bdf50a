"""The common stages: which grid the weights get, which ranges the activations, and the bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from zaq_plugin.observers import MinMaxObserver, TopKMedianObserver
from zaq_plugin.ptq import correct_bias
from zaq_plugin.ptq.analytic import LeastCubesObserver, LeastSquaresObserver
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.pwlq.registry import format_named
from zaq_plugin.strategies.stage import Stage, Work
from zaq_plugin.zero_shot.statistics import has_batch_norm


class MinMaxWeights(Stage):
    """The whole range of every channel.

    Uniform: an asymmetric grid from the smallest to the largest weight. PWLQ: clip ``max|w|`` on
    each side, breakpoint by the paper's search (Fang et al., ECCV 2020, section 3.3).
    """

    slot = "weights"
    name = "minmax"

    def prepare(self, work: Work) -> None:
        """Choose the spec."""
        work.spec = spec_for(work, clip="minmax", policy="search")


class LeastSquaresWeights(Stage):
    """The clip (and breakpoint) of least squared error in every channel.

    Uniform: OMSE (Choukroun et al., 2019, section 3.1). PWLQ: clip and breakpoint together.
    """

    slot = "weights"
    name = "mse"

    def prepare(self, work: Work) -> None:
        """Choose the spec."""
        work.spec = spec_for(work, clip="mse", policy="joint")


def spec_for(work: Work, *, clip: str, policy: str) -> QuantSpec:
    """The weights' grid at the request's stored bits.

    Args:
        work: Holds bits and levels; receives a note where PWLQ is the uniform grid.
        clip: Of a uniform grid: ``minmax`` or ``mse``.
        policy: Of a PWLQ grid.

    Raises:
        ValueError: If the format does not exist at these bits, or chooses no ranges so.
    """
    bits, form = work.request.weight_bits, format_named(work.levels)
    spec = form.at_stored_bits(bits, clip=clip, policy=policy, int8=work.int8)
    if spec.kind != form.kind:
        work.notes.append(
            f"weights at {bits} stored bits are {spec.family}: a {form.kind.upper()} codebook of "
            "255 int8 levels holds every level there is"
        )
    return spec


def per_channel_only(work: Work, what: str) -> None:
    """Refuse one grid per tensor.

    Raises:
        ValueError: With the way out.
    """
    if work.request.granularity != "channel":
        raise ValueError(
            f"{what} works channel by channel; it does not exist with granularity='tensor'. Use "
            "granularity='channel', or a strategy such as 'rq', 'omse' or 'dfq'."
        )


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
    """Medians of extremes (PWLQ, section 4), or the clip of least cubed error.

    Cubes are taken at `FEW` bits and fewer, where a step is coarse and a clip below the extremes
    pays: least squares clip too much on some networks and medians too little on others. They are
    taken at any width in networks without BatchNorm. Nothing keeps their activations in a range,
    their rare extremes carry decisions, and a median of them cuts half off
    (benchmarks/results/field_regrets.md).
    """

    name = "activations-by-width"

    def prepare(self, work: Work) -> None:
        """Choose the observer."""
        bits = work.request.activation_bits
        few = bits is not None and bits <= FEW
        cubes = few or not has_batch_norm(work.model)
        work.observer = LeastCubesObserver if cubes else TopKMedianObserver


class CorrectBias(Stage):
    """The mean output error ``E[(W^ - W) x]`` of each channel leaves the bias (DFQ, section 4.2).

    x comes from the calibration images, through the quantized layers before.
    """

    slot = "after"
    name = "bias-correction"

    def finish(self, work: Work) -> None:
        """Correct layer after layer."""
        work.refuse_after_training(self.name)
        memory = work.request.memory
        correct_bias(work.student, work.batches(), reference=work.teacher, memory=memory)
