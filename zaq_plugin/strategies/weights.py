"""Which grid the weights get, at the stored bits that were asked for."""

from __future__ import annotations

from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.pwlq.registry import format_named
from zaq_plugin.strategies.stage import Stage, Work


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
