"""Which grid the weights get, at the stored bits that were asked for."""

from __future__ import annotations

from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
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
        ValueError: If PWLQ does not exist at these bits.
    """
    bits = work.request.weight_bits
    # int8 kernels hold -127 to 127: an asymmetric grid of 8 bits has levels beyond.
    symmetry = "symmetric" if bits == 8 and work.int8 else "asymmetric"
    if work.levels == "uniform":
        return UniformSpec(bits, symmetry, clip)  # type: ignore[arg-type]
    if bits < 3:
        raise ValueError(
            f"levels='pwlq' needs at least 3 stored bits (2 MAC bits and one for the region); got "
            f"weight_bits={bits}. Use levels='uniform'."
        )
    if bits == 8:
        work.notes.append(
            "weights at 8 stored bits are uniform: a PWLQ codebook of 255 int8 levels holds every "
            "level there is"
        )
        return UniformSpec(8, symmetry, clip)  # type: ignore[arg-type]
    return PWLQSpec(bits - 1, policy=policy)  # type: ignore[arg-type]


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
