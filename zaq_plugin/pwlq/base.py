"""What a number format is: the one class that everything else of the package asks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor

from zaq_plugin.pwlq.json_spec import JsonSpec
from zaq_plugin.pwlq.names import FORMATS, family, widths_in_words

Symmetry = Literal["symmetric", "asymmetric", "one-sided"]
GridKind = Literal["int8", "float"]
Overflow = Literal["pairs", "allowed"]
Activations = Literal["affine", "simulated", "refused"]

SYMMETRIES = ("symmetric", "asymmetric", "one-sided")
OVERFLOWS = ("pairs", "allowed")
INT8_MAX = 127
SMALLEST_CLIP = 1e-30
"""Clips below this are a zero channel: their int8 step would not be a normal float32."""


class Grid(NamedTuple):
    """The levels of every channel and how values find theirs.

    Attributes:
        values: (C, J) level of each decision interval, from the most negative interval upwards:
            integers (float32 tensor) in units of scale on the int8 grid, else levels in weight
            units.
        thresholds: (C, J - 1), not descending, in half steps (integers) on the int8 grid; the float
            grid finds its levels by the paper's formula and has none, shape (C, 0).
        scale: (C,) the int8 grid's step; ones on the float grid.
        integer: whether values are integers in units of scale.
    """

    values: Tensor
    thresholds: Tensor
    scale: Tensor
    integer: bool


_F = TypeVar("_F", bound="Format")


class Format(JsonSpec, ABC):
    """A number format: frozen, hashable, one line of JSON.

    A format goes from rows of weights to *edges* (`solve`), from edges to *levels* (`levels_at`).
    Rows are (C, K), a channel each. Edges are a float32 tensor (sides, C, edge_count), all that
    fixes a channel's levels: clip and breakpoints, or whatever the format says; they are finite and
    ascend in a row. Codes, tables, kernels, gradients, packing and files follow from the levels.

    A format is one file with one subclass, a frozen dataclass that ends ``__post_init__`` by
    ``self._freeze_text()``, and one line of `zaq_plugin.pwlq.names`. It must say `num_levels`,
    `mac_bits`, `label`, `solve`, `levels_at`, `signed_levels` and `of_bits`; everything else has an
    answer that is right for one clip a channel, the same for both signs, for levels that are
    integers up to 127 times a scale, and for names whose width is the stored bits. Nothing outside
    a format's file asks of which class it is.

    Attributes:
        kind: what JSON calls it.
        activations: ``affine``: an activation's uniform grid; ``simulated``: by a module of its
            own; ``refused``: weights only.
        shares_codes: whether a side takes the codes of an empty other one, as PWLQ's do.
        by_piece: whether each edge moves the levels beside it, so that edges are trained apart; a
            channel has one factor otherwise.
        has_tail: whether values beyond the first edge are computed apart, an addition each.
        snapped: whether int8 levels are the ideal ones rounded, so that a coarser grid (see
            `zaq_plugin.pwlq.overflow`) keeps them; otherwise the last edge is the grid's reach.
        generated: whether files hold edges rather than levels.
        signed_edges: whether edges may be negative.
        overlapping: whether levels of one piece lie between those of another.
    """

    activations: ClassVar[Activations] = "refused"
    generated: ClassVar[bool] = True
    signed_edges: ClassVar[bool] = False

    bits: int
    symmetry: Symmetry = "symmetric"
    grid: GridKind = "int8"
    overlapping: bool = False
    overflow: Overflow = "pairs"

    # ---- what a format must say ----

    @property
    @abstractmethod
    def num_levels(self) -> int:
        """Distinct codes per channel."""

    @property
    @abstractmethod
    def mac_bits(self) -> int:
        """Width of the multiplier's weight operand."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Short text for tables: its `Name.words`, then what else there is in brackets."""

    @abstractmethod
    def solve(self, rows: Tensor) -> Tensor:
        """Edges (sides, C, edge_count), float32, of finite rows (C, K) of any float dtype."""

    @abstractmethod
    def levels_at(self, edges: Tensor) -> Grid:
        """The grid of every channel, of float32 edges, with or without a reach."""

    @abstractmethod
    def signed_levels(self, edges: Tensor) -> Tensor:
        """(C, L) ideal levels in the order of `Grid.values`, differentiable in the edges."""

    @classmethod
    @abstractmethod
    def of_bits(cls: type[_F], name: str, bits: int) -> _F:
        """The format that its names and the width after it stand for."""

    # ---- what it may say ----

    @property
    def stored_bits(self) -> int:
        """Bits of one stored code."""
        return math.ceil(math.log2(self.num_levels))

    @property
    def sides(self) -> int:
        """How many sets of edges a channel has: 2 for asymmetric (positive, negative), else 1."""
        return 2 if self.symmetry == "asymmetric" else 1

    @property
    def breakpoints(self) -> int:
        """Edges below the clip; 0 for formats that are not piecewise."""
        return 0

    @property
    def edge_count(self) -> int:
        """Edges of one side."""
        return self.breakpoints + 1

    @property
    def largest_level(self) -> int:
        """The largest integer level there can be; 127 is right for smaller ones, too, if slower."""
        return INT8_MAX

    @property
    def guarded(self) -> bool:
        """Whether levels must be kept from overflowing, see `zaq_plugin.pwlq.overflow`."""
        return False

    @property
    def shares_codes(self) -> bool:
        """See above."""
        return False

    @property
    def by_piece(self) -> bool:
        """See above."""
        return False

    @property
    def has_tail(self) -> bool:
        """See above."""
        return False

    @property
    def snapped(self) -> bool:
        """See above."""
        return False

    def limits(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Range of every channel, (C, 1) each: values outside are clipped and pass no gradient."""
        clip = edges[0, :, self.edge_count - 1 : self.edge_count]
        return -clip, clip

    def edge_gradients(
        self, grad: Tensor, rows: Tensor, quantized: Tensor, edges: Tensor
    ) -> Tensor:
        """The gradient to the edges, of their shape, summed over each channel's values.

        By default that of one clip: levels are in proportion to it, so that dq/dm = q / m beyond it
        and (q - w) / m inside, where the gradient to w passes straight through.

        Args:
            grad, rows, quantized: (C, K) the gradient to the quantized values, values, and these.
            edges: (sides, C, edge_count), without a reach.
        """
        clip = edges[0]
        moved = torch.where(rows.abs() > clip, quantized, quantized - rows)
        share = torch.where(clip > SMALLEST_CLIP, 1 / clip, torch.zeros_like(clip))
        return ((grad * moved).sum(1, keepdim=True) * share).unsqueeze(0)

    def intervals(self, rows: Tensor, edges: Tensor) -> Tensor:
        """Decision interval (C, K), int32, of each value, where levels are no integers."""
        raise TypeError(f"{self.label} has no float grid; its levels are integers times a scale.")

    def widths(self) -> Sequence[Format]:
        """The formats of its family, the narrowest first, that a budget chooses among."""
        _, low, high = self._family()
        return [replace(self, bits=bits) for bits in range(low, high + 1)]  # type: ignore[type-var]

    @property
    def stored_range(self) -> tuple[int, int]:
        """Fewest and most stored bits of `widths` of the same kind."""
        widths = [spec.stored_bits for spec in self.widths() if spec.kind == self.kind]
        return min(widths), max(widths)

    @classmethod
    def at_stored_bits(cls, bits: int, *, clip: str, policy: str, int8: bool) -> Format:
        """What strategies take at a number of stored bits; another kind where it has none.

        Args:
            bits: stored bits, 2 to 8.
            clip, policy: how ranges are chosen: ``minmax`` or ``mse``, and PWLQ's policy.
            int8: whether int8 kernels are to compute with it.

        Raises:
            ValueError: there is no such format, or it does not choose ranges so.
        """
        name, low, high = cls._family()
        if not low <= bits <= high:
            raise ValueError(
                f"levels={name!r} has {widths_in_words(low, high)} stored bits; got "
                f"weight_bits={bits}. Use levels='uniform' or 'pwlq'."
            )
        if clip != "mse":
            raise ValueError(
                f"levels={name!r} chooses its own range, and has none of "
                f"clip={clip!r}; use a strategy whose weights are 'mse', such as 'omse' or "
                "'pwlq', or levels='uniform'."
            )
        return cls.of_bits(name, bits)

    def table_bytes(self, channels: int) -> int:
        """Bytes beside the codes in a file: what the levels are made of again."""
        return 4 * channels * self.sides * self.edge_count

    def with_stored_bits(self: _F, bits: int) -> _F:
        """The same kind of format at another number of stored bits."""
        return replace(self, bits=bits - (self.stored_bits - self.bits))  # type: ignore[type-var]

    @property
    def family(self) -> str:
        """What it is called before the bits; what strategies' ``levels`` take."""
        return family(self.kind)

    @classmethod
    def _family(cls) -> tuple[str, int, int]:
        """Name, narrowest and widest width."""
        name = family(cls.kind)
        return name, *FORMATS[cls.kind].names[name][:2]

    def affine_activation(self) -> tuple[int, bool]:
        """Bits of an activation's uniform grid, and whether it is symmetric.

        Raises:
            ValueError: the format is not for activations, or chooses no range of theirs.
        """
        raise ValueError(f"activations: {self.label} is for weights; give a number of bits, 2 to 8")


def is_simulated(activations: object) -> TypeGuard[Any]:
    """Whether activations are of a format that a module of its own simulates, as PWLQ's are."""
    return isinstance(activations, Format) and activations.activations == "simulated"


QuantSpec = Format
"""What annotations call it."""
