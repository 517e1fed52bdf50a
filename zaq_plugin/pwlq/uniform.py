"""The uniform number format: the baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import (
    OVERFLOWS,
    SMALLEST_CLIP,
    SYMMETRIES,
    Activations,
    Format,
    Grid,
    Overflow,
    Symmetry,
)
from zaq_plugin.pwlq.json_spec import check_choice, check_int
from zaq_plugin.pwlq.levels import PiecewiseLinear
from zaq_plugin.pwlq.search import search_edges, search_range
from zaq_plugin.pwlq.straight_through import piece_gradients, range_gradients
from zaq_plugin.pwlq.theory import side_maxima

CLIPS = ("minmax", "mse")


@dataclass(frozen=True)
class UniformSpec(PiecewiseLinear):
    """A uniform grid with the same interface: the baseline of every table.

    Symmetric levels are ``scale * k`` for ``|k| <= 2^(b-1) - 1`` (narrow range); asymmetric levels
    are ``scale * (k - zero_point)`` for ``0 <= k < 2^b``; one-sided levels are ``scale * k`` for
    ``0 <= k < 2^b``.

    Attributes:
        bits: MAC bits, which are also the stored bits; 2 to 8.
        symmetry: see above; the range always contains zero.
        clip: ``minmax`` takes the whole range, ``mse`` the clip of least squared error.
        overflow: as in `PWLQSpec`; it matters where levels exceed 64, at 7 and 8 bits.

    Raises:
        ValueError: for a value out of range.
        TypeError: if bits is no integer.
    """

    kind: ClassVar[str] = "uniform"
    activations: ClassVar[Activations] = "affine"

    bits: int = 8
    symmetry: Symmetry = "symmetric"
    clip: Literal["minmax", "mse"] = "minmax"
    overflow: Overflow = "pairs"

    def __post_init__(self) -> None:
        check_int("bits", self.bits, 2, 8)
        check_choice("symmetry", self.symmetry, SYMMETRIES)
        check_choice("clip", self.clip, CLIPS)
        check_choice("overflow", self.overflow, OVERFLOWS)
        self._freeze_text()

    @property
    def guarded(self) -> bool:
        """Whether levels exceed 64, so that two may overflow, and still are int8."""
        return self.overflow == "pairs" and self.bits == (8 if self.symmetry == "symmetric" else 7)

    @property
    def num_levels(self) -> int:
        """2^b, or 2^b - 1 for the symmetric narrow range."""
        return 2**self.bits - (1 if self.symmetry == "symmetric" else 0)

    @property
    def mac_bits(self) -> int:
        """Width of the multiplier's weight operand."""
        return self.bits

    @property
    def stored_bits(self) -> int:
        """Bits of one stored code."""
        return self.bits

    @property
    def label(self) -> str:
        """Short text for tables, with both widths."""
        extras = self.clip if self.symmetry == "symmetric" else f"{self.clip}, {self.symmetry}"
        if self.bits > 6 and self.overflow == "allowed":
            extras += ", overflow allowed"
        return f"uniform {self.mac_bits}b MAC/{self.stored_bits}b stored ({extras})"

    @property
    def largest_level(self) -> int:
        """Of an asymmetric grid whose zero point is at an end: 255 at 8 bits."""
        return 2 ** (self.bits - 1) - 1 if self.symmetry == "symmetric" else 2**self.bits - 1

    @property
    def piece_steps(self) -> tuple[int, ...]:
        """One piece."""
        return ((2**self.bits if self.symmetry == "one-sided" else 2 ** (self.bits - 1)) - 1,)

    def solve(self, rows: Tensor) -> Tensor:
        """The clip of each side."""
        if self.clip == "minmax":
            return side_maxima(rows, self).unsqueeze(-1)
        if self.symmetry == "asymmetric":
            return search_range(rows, self)
        return search_edges(rows, self, joint=True)

    def levels_at(self, edges: Tensor) -> Grid:
        """Evenly spaced; a reach makes the whole grid coarser."""
        return _grid(edges, self)

    def signed_levels(self, edges: Tensor) -> Tensor:
        """In proportion to the step; a zero point has no gradient."""
        grid = _grid(edges, self)
        return grid.values.detach() * grid.scale.unsqueeze(1)

    def limits(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """As far as the grid reaches."""
        return self._range(edges[..., -1:])

    def edge_gradients(
        self, grad: Tensor, rows: Tensor, quantized: Tensor, edges: Tensor
    ) -> Tensor:
        """Both ends of an asymmetric grid share one step."""
        if self.symmetry == "asymmetric":
            return range_gradients(grad, rows, quantized, edges)
        return piece_gradients(grad, rows, quantized, edges, self)

    def widths(self) -> list[Format]:
        """2 to 8 bits."""
        return [UniformSpec(bits, self.symmetry, self.clip) for bits in range(2, 9)]

    def affine_activation(self) -> tuple[int, bool]:
        """Of a uniform grid whose range an observer finds."""
        if self.clip != "minmax":
            raise ValueError(
                f"activations: clip={self.clip!r} is for weights; use clip='minmax', or a "
                "width in bits with observer=PercentileObserver or TopKMedianObserver"
            )
        return self.bits, self.symmetry == "symmetric"

    @classmethod
    def of_bits(cls, name: str, bits: int) -> UniformSpec:
        """``uniform4``: asymmetric, the clip of least squared error; ``minmax4``: the range."""
        return cls(bits, "asymmetric", "minmax" if name == "minmax" else "mse")

    @classmethod
    def at_stored_bits(cls, bits: int, *, clip: str, policy: str, int8: bool) -> Format:
        """Asymmetric, but for int8 kernels at 8 bits: they hold -127 to 127."""
        symmetry: Symmetry = "symmetric" if bits == 8 and int8 else "asymmetric"
        return cls(bits, symmetry, clip)  # type: ignore[arg-type]


def _grid(edges: Tensor, spec: UniformSpec) -> Grid:
    clip = edges[..., -1]  # the reach, where there is one: a coarser grid is one that goes further
    count = spec.num_levels - 1
    width = clip.sum(0) if spec.symmetry == "asymmetric" else clip[0]
    if spec.symmetry == "symmetric":
        width = 2 * width
    scale = torch.where(width > SMALLEST_CLIP, width / count, torch.ones_like(width))
    if spec.symmetry == "asymmetric":
        offset = torch.round(clip[1] / scale)
    else:
        offset = torch.full_like(scale, count / 2 if spec.symmetry == "symmetric" else 0.0)
    ladder = torch.arange(count + 1, device=edges.device, dtype=edges.dtype)
    values = ladder - offset.unsqueeze(-1)
    return Grid(values, values[:, 1:] + values[:, :-1], scale, True)
