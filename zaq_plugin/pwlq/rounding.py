"""Values on the levels of given edges: what `ops` and `eager` both compute."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from zaq_plugin.pwlq.base import INT8_MAX, Format, Grid
from zaq_plugin.pwlq.kernels import from_rows, look_up, look_up_in, table_of, to_rows
from zaq_plugin.pwlq.levels import build_grid
from zaq_plugin.pwlq.overflow import lower, places_of, reachable, smaller, wide_channels


class Rounder:
    """Rounds values to the levels of some edges.

    Args:
        edges: (sides, channels, n + 1), or n + 2 with a reach.
        spec: their format.
    """

    def __init__(self, edges: Tensor, spec: Format) -> None:
        self.edges, self.spec = edges.detach().clone(), spec
        self.grid = build_grid(self.edges, spec)
        self._table = None
        if self.grid.integer:
            # Half steps are many: their levels are kept as integers, a byte each.
            dtype = torch.int8 if spec.largest_level <= INT8_MAX else torch.int16
            self._table = table_of(self.grid, spec, self.grid.values.to(dtype))

    def fits(self, edges: Tensor, spec: Format) -> bool:
        """Whether it is the one of these edges."""
        mine = self.edges
        kind = (edges.device, edges.dtype, spec) == (mine.device, mine.dtype, self.spec)
        return kind and torch.equal(edges, mine)

    def round(self, w: Tensor, axis: int | None) -> Tensor:
        """The values of w on their levels, guarded, in its shape, memory format and dtype."""
        rows = self._nearest(to_rows(w, axis))
        if self.spec.guarded:
            self._mend(rows, w.shape, axis)
        return from_rows(rows.to(w.dtype), w, axis)

    def _nearest(self, rows: Tensor) -> Tensor:
        """(C, K) float32, of any float type."""
        if self._table is None:
            return look_up(rows, self.grid, self.edges, self.spec, self.grid.values + 0.0)
        values = self._table.values * self.grid.scale.unsqueeze(1)
        return look_up_in(rows, self._table._replace(values=values))

    def _mend(self, rows: Tensor, shape: torch.Size, axis: int | None) -> None:
        """Make values in rows that overflow smaller, in place; few channels have any."""
        grid, edges = self.grid, self.edges
        if axis is None:
            integers = torch.round(rows / grid.scale.unsqueeze(1)).view(shape)
            lower(integers, edges, self.spec, axis)
            rows.copy_(integers.view_as(rows) * grid.scale.unsqueeze(1))
            return
        places = places_of(shape, axis)
        wide = wide_channels(rows, grid.scale, places)
        if not len(wide):
            return
        some = Grid(grid.values[wide], grid.thresholds[wide], grid.scale[wide], True)
        books = reachable(some, edges[:, wide], self.spec)
        at, levels = smaller(rows.index_select(0, wide), books, places, some.scale)
        length = rows.shape[1]
        channel = wide[torch.div(at, length, rounding_mode="floor")]
        rows.view(-1)[channel * length + at % length] = levels * grid.scale[channel]


REMEMBERED: MutableMapping[Tensor, Rounder] = WeakIdKeyDictionary()


def rounder_of(edges: Tensor, spec: Format) -> Rounder:
    """The rounder of edges; that of a tensor which still holds what it held is remembered.

    Fake-quantizers keep their edges from one training step to the next, and grids and tables cost
    more than rounding a small layer does.
    """
    made = REMEMBERED.get(edges)
    if made is None or not made.fits(edges, spec):
        made = Rounder(edges, spec)
        REMEMBERED[edges] = made
    return made


def is_known(edges: object, spec: Format) -> bool:
    """Whether `rounder_of` has seen these very edges."""
    if not isinstance(edges, Tensor):
        return False
    made = REMEMBERED.get(edges)
    return made is not None and made.fits(edges, spec)


def fake_quantized(w: Tensor, edges: Tensor, spec: Format, axis: int | None) -> Tensor:
    """The quantized and dequantized values of w, in its dtype; no gradient of its own."""
    return rounder_of(edges, spec).round(w, axis)
