"""A free codebook: each channel has the levels of least squared error, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import OVERFLOWS, Format, Grid, Overflow
from zaq_plugin.pwlq.json_spec import check_choice, check_int
from zaq_plugin.pwlq.levels import int8_scale, without_tops
from zaq_plugin.pwlq.piecewise import PWLQSpec
from zaq_plugin.pwlq.search import in_blocks
from zaq_plugin.pwlq.uniform import UniformSpec

_ROUNDS = 60


@dataclass(frozen=True)
class CodebookSpec(Format):
    """2^b levels a channel by Lloyd's iteration (1982; Max, 1960), snapped to ``scale * int8``.

    The bound that formats with a formula are measured against. Edges are the levels themselves,
    (1, C, 2^b), ascending and of both signs. A file holds the levels, an int8 each, and a float32
    scale a channel: `table_bytes`, which counts where channels are short.

    Attributes:
        bits: of a stored code, 2 to 7. Kernels multiply by int8 levels: 8 MAC bits.
        overflow: as in `PWLQSpec`.

    Raises:
        ValueError: for a value out of range.
        TypeError: if bits is no integer.
    """

    kind: ClassVar[str] = "codebook"
    generated: ClassVar[bool] = False
    signed_edges: ClassVar[bool] = True

    bits: int = 4
    overflow: Overflow = "pairs"

    def __post_init__(self) -> None:
        check_int("bits", self.bits, 2, 7)
        check_choice("overflow", self.overflow, OVERFLOWS)
        self._freeze_text()

    @property
    def num_levels(self) -> int:
        """2^b."""
        return int(2**self.bits)

    @property
    def edge_count(self) -> int:
        """One a level."""
        return self.num_levels

    @property
    def mac_bits(self) -> int:
        """Levels are any int8."""
        return 8

    @property
    def guarded(self) -> bool:
        """Levels reach 127."""
        return self.overflow == "pairs"

    @property
    def snapped(self) -> bool:
        """Levels are rounded to the int8 grid."""
        return True

    @property
    def label(self) -> str:
        """Short text for tables, with both widths and the table."""
        extra = "" if self.guarded else ", overflow allowed"
        table = f"table of {self.num_levels} int8 a channel"
        return f"codebook 8b MAC/{self.stored_bits}b stored ({table}{extra})"

    def levels_at(self, edges: Tensor) -> Grid:
        """The nearest multiples of the int8 step."""
        scale = int8_scale(edges, self)
        values = torch.round(without_tops(edges, self)[0] / scale.unsqueeze(1))
        return Grid(values, values[:, 1:] + values[:, :-1], scale, True)

    def signed_levels(self, edges: Tensor) -> Tensor:
        """The edges."""
        return without_tops(edges, self)[0]

    def limits(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """From the smallest level to the largest."""
        levels = self.signed_levels(edges)
        return levels[:, :1], levels[:, -1:]

    def edge_gradients(
        self, grad: Tensor, rows: Tensor, quantized: Tensor, edges: Tensor
    ) -> Tensor:
        """A level's is the sum over the values that take it."""
        levels = edges[0].contiguous()
        index = _nearest(levels, quantized)
        return torch.zeros_like(levels).scatter_add_(1, index, grad).unsqueeze(0)

    def solve(self, rows: Tensor) -> Tensor:
        """Levels (1, C, 2^b): the best of Lloyd's optima, from three starts."""
        return in_blocks(rows, self._lloyd)

    def _lloyd(self, rows: Tensor) -> Tensor:
        count, wide = self.num_levels, rows.double().sort(1).values
        sums = torch.nn.functional.pad(wide.cumsum(1), (1, 0))
        squares = wide.square().sum(1)
        share = (torch.arange(count, dtype=wide.dtype, device=rows.device) + 0.5) / count
        place = (share * wide.shape[1]).long().clamp(max=wide.shape[1] - 1)
        even = wide[:, :1] + (wide[:, -1:] - wide[:, :1]) * share
        best: Tensor | None = None
        least = torch.full_like(squares, torch.inf)
        starts = [wide[:, place], even]
        if self.bits > 2:
            near = PWLQSpec(self.bits - 1, grid="float")
            levels = near.signed_levels(near.solve(rows)).double()
            starts.append(torch.cat([levels, levels[:, -1:]], 1))  # it has 2^b - 1
        for start in starts:
            levels = start.contiguous()
            for _ in range(_ROUNDS):
                number, total = _cells(wide, sums, levels)
                levels = torch.where(number > 0, total / number.clamp(min=1), levels)
                levels = levels.sort(1).values
            number, total = _cells(wide, sums, levels)
            error = squares - 2 * (levels * total).sum(1) + (number * levels.square()).sum(1)
            better = error < least
            best = levels if best is None else torch.where(better.unsqueeze(1), levels, best)
            least = torch.minimum(error, least)
        assert best is not None
        return best.float().unsqueeze(0)

    def table_bytes(self, channels: int) -> int:
        """The levels, a byte each, and a scale a channel."""
        return channels * (self.num_levels + 4)

    def widths(self) -> list[Format]:
        """2 to 7 stored bits, and int8, which needs no table."""
        return [*super().widths(), UniformSpec(8)]

    @classmethod
    def of_bits(cls, name: str, bits: int) -> CodebookSpec:
        """``codebook4``."""
        return cls(bits)


def _cells(rows: Tensor, sums: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the sorted values (C, K) are nearest to each level (C, L), and their sums.

    Args:
        sums: (C, K + 1) of the first k values.
    """
    cuts = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    ends = torch.searchsorted(rows, cuts)
    ends = torch.nn.functional.pad(ends, (1, 0))
    ends = torch.cat([ends, torch.full_like(ends[:, :1], rows.shape[1])], 1)
    return ends.diff(dim=1).to(rows.dtype), sums.gather(1, ends).diff(dim=1)


def _nearest(levels: Tensor, values: Tensor) -> Tensor:
    """Position of the level that is nearest to each value, (C, K)."""
    cuts = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    return torch.searchsorted(cuts, values.contiguous())
