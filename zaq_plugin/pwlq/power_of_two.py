"""Power-of-two levels: zero, and powers of two of both signs times a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import SMALLEST_CLIP, Format, Grid
from zaq_plugin.pwlq.json_spec import check_int
from zaq_plugin.pwlq.moments import mean_squared_error, measure
from zaq_plugin.pwlq.search import BINS, in_blocks
from zaq_plugin.pwlq.uniform import UniformSpec

_RATIOS = tuple(2 ** (-i / 12) * 4 / 3 for i in range(72))
"""Clips over the largest magnitude: the largest one lies up to a third below the top level."""
_STARTS = 3
_ROUNDS = 12


@dataclass(frozen=True)
class PowerOfTwoSpec(Format):
    """``scale * {0, +-1, +-2, +-4, ...}``: a product is a shift (Miyashita et al., 2016).

    The scale of a channel has least squared error. Levels are integers up to 64 on the int8 grid,
    so that int8 kernels compute with them exactly, and two of them add up to at most 128: they
    cannot overflow, see `zaq_plugin.pwlq.overflow`.

    Attributes:
        bits: of a code, sign included, 2 (ternary) to 4: b bits hold 2^(b-1) - 1 powers. 5 bits
            would be 15 of them, down to a 16384th of the largest, which int8 does not hold: codes
            would only be added next to zero, where levels are closest already.

    Raises:
        ValueError: for bits out of range.
        TypeError: if bits is no integer.
    """

    kind: ClassVar[str] = "power-of-two"

    bits: int = 4

    def __post_init__(self) -> None:
        check_int("bits", self.bits, 2, 4)
        self._freeze_text()

    @property
    def powers(self) -> int:
        """How many powers of each sign."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def num_levels(self) -> int:
        """2^b - 1: the powers of both signs, and zero."""
        return 2 * self.powers + 1

    @property
    def mac_bits(self) -> int:
        """A sign and the number of places to shift by; an int8 kernel multiplies in 8 bits."""
        return self.bits

    @property
    def largest_level(self) -> int:
        """64 at 4 bits."""
        return int(2 ** (self.powers - 1))

    @property
    def label(self) -> str:
        """Short text for tables, with both widths."""
        return f"power of two {self.mac_bits}b MAC/{self.stored_bits}b stored (shifts)"

    def _integers(self, edges: Tensor) -> Tensor:
        powers = 2.0 ** torch.arange(self.powers, device=edges.device, dtype=edges.dtype)
        return torch.cat([-powers.flip(0), powers.new_zeros(1), powers])

    def levels_at(self, edges: Tensor) -> Grid:
        """The clip is the largest level."""
        clip = edges[0, :, 0]
        scale = torch.where(clip > SMALLEST_CLIP, clip / self.largest_level, torch.ones_like(clip))
        values = self._integers(edges).repeat(edges.shape[1], 1)
        return Grid(values, values[:, 1:] + values[:, :-1], scale, True)

    def signed_levels(self, edges: Tensor) -> Tensor:
        """In proportion to the clip."""
        return edges[0] * (self._integers(edges) / self.largest_level)

    def solve(self, rows: Tensor) -> Tensor:
        """Clips (1, C, 1) of least squared error."""
        return in_blocks(rows, self._clips)

    def _clips(self, rows: Tensor) -> Tensor:
        """The best of a histogram's candidates, each moved to where its codes' scale is best."""
        largest = rows.abs().amax(1)
        moments = measure(rows, -largest, largest, 2 * BINS, torch.float32)
        clips = largest.unsqueeze(1) * torch.tensor(_RATIOS, device=rows.device)
        levels = self.signed_levels(clips.reshape(1, -1, 1)).view(*clips.shape, -1)
        coarse = mean_squared_error(moments, levels)
        starts = clips.gather(1, coarse.topk(_STARTS, dim=1, largest=False).indices)
        descents = [self._descend(rows, start) for start in starts.unbind(1)]
        best = torch.stack([error for _, error in descents]).argmin(0, keepdim=True)
        clip = torch.stack([clip for clip, _ in descents]).gather(0, best)
        return clip.unsqueeze(-1)

    def _descend(self, rows: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the nearest levels and the scale of least squares, in turn; clip, error (C,)."""
        units = self._integers(rows) / self.largest_level
        cuts = (units[1:] + units[:-1]) / 2
        for _ in range(_ROUNDS):
            safe = clip.clamp(min=SMALLEST_CLIP).unsqueeze(1)
            q = units[torch.bucketize(rows / safe, cuts)]
            power = q.square().sum(1)
            best = (rows * q).sum(1) / power.clamp(min=1e-30)
            clip = torch.where(power > 0, best, clip)
        safe = clip.clamp(min=SMALLEST_CLIP).unsqueeze(1)
        q = units[torch.bucketize(rows / safe, cuts)]
        return clip, (q * safe - rows).square().sum(1)

    def widths(self) -> list[Format]:
        """2 to 4 bits, and int8."""
        return [*super().widths(), UniformSpec(8)]

    @classmethod
    def of_bits(cls, name: str, bits: int) -> PowerOfTwoSpec:
        """``pot4``."""
        return cls(bits)
