"""PWLQ: the piecewise linear number format, and decision intervals on its float grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import (
    OVERFLOWS,
    SYMMETRIES,
    Activations,
    Format,
    Grid,
    GridKind,
    Overflow,
    Symmetry,
)
from zaq_plugin.pwlq.json_spec import check_choice, check_int
from zaq_plugin.pwlq.levels import LONE, PiecewiseLinear, lone_sides, piecewise_grid
from zaq_plugin.pwlq.search import search_edges
from zaq_plugin.pwlq.straight_through import piece_gradients
from zaq_plugin.pwlq.theory import density_edges
from zaq_plugin.pwlq.uniform import UniformSpec

Policy = Literal[
    "gaussian", "laplacian", "gaussian-exact", "laplacian-exact", "search", "joint", "given"
]
POLICIES = (
    "gaussian",
    "laplacian",
    "gaussian-exact",
    "laplacian-exact",
    "search",
    "joint",
    "given",
)
GRIDS = ("int8", "float")
MAX_INT8_BITS = 6


@dataclass(frozen=True)
class PWLQSpec(PiecewiseLinear):
    """A piecewise linear number format (PWLQ, Fang et al., ECCV 2020, section 3).

    The range of one side, ``[0, m]``, is cut at n breakpoints ``p_1 < ... < p_n < m`` into n + 1
    pieces, and each piece carries a uniform grid of ``b - 1`` bits (``b`` bits for one-sided
    values, which need no sign).

    Attributes:
        bits: MAC bits, the paper's b: the width that the multiplier sees, 2 to 8.
        breakpoints: n, 1 to 3.
        overlapping: the paper's ablation, whose tail grid spans ``[-m, m]`` with offset 0
            (one breakpoint only). Worse than the default, kept for comparison.
        symmetry: ``symmetric`` uses one clip and one set of breakpoints for both signs (the paper);
            ``asymmetric`` gives each side its own, and a channel of one sign the codes of both;
            ``one-sided`` describes values >= 0.
        policy: how clip and breakpoints are chosen. ``gaussian`` and ``laplacian`` are the closed
            forms with clip ``max|w|`` (the exact minimiser outside 3 <= m/sigma <= 10, and for n >
            1); ``gaussian-exact`` and ``laplacian-exact`` always use the minimiser; ``search`` is
            the paper's three-stage search over p/m; ``joint`` minimises the squared error over
            clip and breakpoints together; ``given`` takes them from the caller (``edges=``).
        grid: ``int8`` snaps the levels to ``scale * int8`` so that any int8 kernel computes with
            them exactly; ``float`` keeps the ideal levels.
        shared_endpoints: True is the paper's formula, in which the tail's first level repeats the
            breakpoint; False starts the tail one step further out, so that no code is wasted.
        overflow: ``pairs``: no two neighbouring weights overflow the 16 bits in which processors
            without VNNI add two products, see `zaq_plugin.pwlq.overflow`; ``allowed``: they may.

    Raises:
        ValueError: for a value out of range or a combination that does not exist.
        TypeError: if an integer field is no integer.
    """

    kind: ClassVar[str] = "pwlq"
    activations: ClassVar[Activations] = "simulated"

    bits: int = 4
    breakpoints: int = 1
    overlapping: bool = False
    symmetry: Symmetry = "asymmetric"
    policy: Policy = "joint"
    grid: GridKind = "int8"
    shared_endpoints: bool = False
    overflow: Overflow = "pairs"

    def __post_init__(self) -> None:
        check_int("bits", self.bits, 2, 8)
        check_int("breakpoints", self.breakpoints, 1, 3)
        check_choice("symmetry", self.symmetry, SYMMETRIES)
        check_choice("policy", self.policy, POLICIES)
        check_choice("grid", self.grid, GRIDS)
        check_choice("overflow", self.overflow, OVERFLOWS)
        for name in ("overlapping", "shared_endpoints"):
            if not isinstance(vars(self)[name], bool):
                raise TypeError(f"{name} must be True or False; got {vars(self)[name]!r}.")
        if self.grid == "int8" and self.bits > MAX_INT8_BITS:
            raise ValueError(
                f"grid='int8' holds at most {MAX_INT8_BITS} bits, got bits={self.bits}: above that "
                "the center's step is finer than the int8 step, and snapping loses PWLQ's gain. "
                "Use grid='float', or UniformSpec(bits=8)."
            )
        if self.overlapping and self.breakpoints != 1:
            raise ValueError(
                "overlapping=True is defined for one breakpoint; got "
                f"breakpoints={self.breakpoints}. Use overlapping=False, the more accurate variant."
            )
        self._freeze_text()

    @property
    def guarded(self) -> bool:
        """Whether levels must be kept from overflowing; the float grid's are no integers."""
        return self.overflow == "pairs" and self.grid == "int8"

    @property
    def piece_steps(self) -> tuple[int, ...]:
        """Grid steps of each piece of one side, from the center outwards."""
        k = 2**self.bits if self.symmetry == "one-sided" else 2 ** (self.bits - 1)
        tail = k - 1 if self.shared_endpoints or self.overlapping else k
        return (k - 1, *([tail] * self.breakpoints))

    @property
    def num_levels(self) -> int:
        """Distinct codes per channel: (n+1) 2^b - 1, or (n+1) 2^b - 1 - 2n with shared endpoints.

        One-sided: (n+1) 2^b, or (n+1) 2^b - n with shared endpoints.
        """
        one_side = sum(self.piece_steps)
        return one_side + 1 if self.symmetry == "one-sided" else 2 * one_side + 1

    @property
    def mac_bits(self) -> int:
        """Width of the multiplier's weight operand: the paper's b."""
        return self.bits

    @property
    def stored_bits(self) -> int:
        """Bits of one stored code: ceil(log2(num_levels)); b + 1 for one breakpoint."""
        return math.ceil(math.log2(self.num_levels))

    @property
    def label(self) -> str:
        """Short text for tables, with both widths."""
        extras: list[str] = [self.policy]
        if self.breakpoints > 1:
            extras.append(f"n={self.breakpoints}")
        if self.symmetry != "asymmetric":
            extras.append(self.symmetry)
        if self.overlapping:
            extras.append("overlapping")
        if self.grid == "float":
            extras.append("float grid")
        elif self.overflow == "allowed" and self.symmetry != "one-sided":
            extras.append("overflow allowed")
        return f"PWLQ {self.mac_bits}b MAC/{self.stored_bits}b stored ({', '.join(extras)})"

    @property
    def shares_codes(self) -> bool:
        """Where each side has codes of its own."""
        return self.symmetry == "asymmetric"

    @property
    def by_piece(self) -> bool:
        """The overlapping variant's pieces begin at zero."""
        return not self.overlapping

    @property
    def has_tail(self) -> bool:
        """Beyond the first breakpoint an offset is added."""
        return True

    @property
    def snapped(self) -> bool:
        """On the int8 grid."""
        return self.grid == "int8"

    def solve(self, rows: Tensor) -> Tensor:
        """Clip and breakpoints (PWLQ sections 3.2 and 3.3), by the policy.

        Raises:
            ValueError: the policy is ``given``.
        """
        if self.policy == "given":
            raise ValueError(
                "policy='given' takes clip and breakpoints from the caller: pass edges=, of shape "
                "(sides, channels, breakpoints + 1)."
            )
        if self.policy in ("joint", "search"):
            return search_edges(rows, self, joint=self.policy == "joint")
        return density_edges(rows, self, self.policy)

    def levels_at(self, edges: Tensor) -> Grid:
        """Evenly spaced in each piece."""
        return piecewise_grid(edges, self)

    def edge_gradients(
        self, grad: Tensor, rows: Tensor, quantized: Tensor, edges: Tensor
    ) -> Tensor:
        """See `zaq_plugin.pwlq.straight_through`."""
        return piece_gradients(grad, rows, quantized, edges, self)

    def intervals(self, rows: Tensor, edges: Tensor) -> Tensor:
        """By the paper's formula, on the float grid."""
        return intervals(rows, edges, self)

    def table_bytes(self, channels: int) -> int:
        """Clip and breakpoints; a byte for the largest level of a grid kept from overflowing."""
        return super().table_bytes(channels) + (channels if self.guarded else 0)

    def widths(self) -> list[Format]:
        """2 to 6 MAC bits, and int8: between them an int8 grid holds every level there is."""
        return [*(PWLQSpec(bits) for bits in range(2, MAX_INT8_BITS + 1)), UniformSpec(8)]

    @classmethod
    def of_bits(cls, name: str, bits: int) -> PWLQSpec:
        """``pwlq4``: 4 MAC bits, all else as by default."""
        return cls(bits=bits)

    @classmethod
    def at_stored_bits(cls, bits: int, *, clip: str, policy: str, int8: bool) -> Format:
        """One MAC bit fewer; uniform at 8 bits, as `widths`."""
        if bits < 3:
            raise ValueError(
                f"levels='pwlq' needs at least 3 stored bits (2 MAC bits and one for the region); "
                f"got weight_bits={bits}. Use levels='uniform'."
            )
        if bits == 8:
            return UniformSpec.at_stored_bits(8, clip=clip, policy=policy, int8=int8)
        return cls(bits - 1, policy=policy)  # type: ignore[arg-type]


def _inverse_steps(
    edges: Tensor, spec: PiecewiseLinear, times: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per piece of one side: its start, steps per weight unit, and its steps, (C, 1) each."""
    below = torch.zeros_like(edges[:, :1])
    pieces = []
    for piece, usual in enumerate(spec.piece_steps):
        count = usual * times
        above = edges[:, piece : piece + 1]
        start = torch.zeros_like(below) if spec.overlapping else below
        width = above - start
        finite = (count / width).clamp(max=torch.finfo(width.dtype).max)  # of subnormal pieces, too
        inverse = torch.where(width > 0, finite, torch.zeros_like(width))
        pieces.append((start, inverse, count))
        below = above
    return pieces


def intervals(rows: Tensor, edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """Decision interval of each value on the float grid, int32; edges (sides, C, n + 1).

    Each piece counts the steps that a value climbs in it, 0 below and all of them above; the sum
    over the pieces is the level's number.
    """
    if spec.overlapping:
        return _overlapping_intervals(rows, edges, spec)
    times = _times(edges, spec)
    symmetric, zero = spec.symmetry == "symmetric", torch.zeros_like(times[0])
    number = torch.zeros_like(rows)
    for piece, (start, inverse, count) in enumerate(_inverse_steps(edges[0], spec, times[0])):
        low = -count if symmetric and piece == 0 else zero
        number += ((rows - start) * inverse).round_().clamp_(low, count)
    if spec.symmetry == "one-sided":
        return number.int()
    negative = _inverse_steps(edges[-1], spec, times[-1])
    for start, inverse, count in negative[1:] if symmetric else negative:
        number += ((rows + start) * inverse).round_().clamp_(-count, zero)
    return number.int().add_(_below_zero(edges, spec))


def _times(edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """(sides, C, 1): how many times the usual steps a side's pieces have."""
    return (1 + (LONE - 1) * lone_sides(edges, spec).to(edges.dtype)).unsqueeze(-1)


def _below_zero(edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """(C, 1) int32: number of the zero level, which is how many lie below it."""
    total = sum(spec.piece_steps)
    alone = lone_sides(edges, spec)
    below = torch.full_like(alone[0], total, dtype=torch.int32)
    if spec.symmetry == "asymmetric":
        below = below.masked_fill(alone[0], 0).masked_fill(alone[1], LONE * total)
    return below.unsqueeze(-1)


def _overlapping_intervals(rows: Tensor, edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """The overlapping variant: beyond p rules the tail's grid, which starts at zero."""
    one_sided = spec.symmetry == "one-sided"
    magnitude = rows.clamp(min=0) if one_sided else rows.abs()
    numbers = []
    for side, times in zip(edges, _times(edges, spec), strict=True):
        (_, inner, center), (_, outer, tail) = _inverse_steps(side, spec, times)
        zero = torch.zeros_like(center)
        near = (magnitude * inner).round_().clamp_(zero, center)
        far = (magnitude * outer).round_().clamp_(zero + 1, tail).add_(center)
        numbers.append(torch.where(magnitude > side[:, :1], far, near))
    if one_sided:
        return numbers[0].int()
    positive, negative = numbers[0], -numbers[-1]
    if spec.symmetry == "asymmetric":  # an empty side has no levels but zero
        empty = lone_sides(edges, spec).flip(0).unsqueeze(-1)
        positive = positive.masked_fill(empty[0], 0)
        negative = negative.masked_fill(empty[1], 0)
    signed = torch.where(rows < 0, negative, positive)
    return signed.int().add_(_below_zero(edges, spec))
