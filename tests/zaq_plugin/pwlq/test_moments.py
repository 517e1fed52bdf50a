"""The tables that searches read errors off, against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zaq_plugin.pwlq.moments import measure


@pytest.mark.parametrize("low", [0.0, -1.5])
def test_tables_are_shares_and_areas_at_the_bin_edges(low: float) -> None:
    rows = torch.rand(3, 200, generator=torch.Generator().manual_seed(0)) * 2 + low
    rows[1] *= 0.25
    rows[2] = 0.0  # a channel without range
    start = torch.tensor([low, min(0.25 * low, 0.0), 0.0])
    tables = measure(rows, start, rows.amax(1), 16, torch.float64)
    values = rows.double().numpy()
    for channel in range(2):
        first, last = float(start[channel]), float(rows[channel].amax())
        edges = first + (last - first) / 16 * np.arange(17)
        for edge, below, area in zip(
            edges[1:-1], tables.below[channel, 1:-1], tables.area[channel, 1:-1], strict=True
        ):
            inside = values[channel] < edge
            # A value within rounding of an edge may be counted on either side.
            assert float(below) == pytest.approx(inside.mean(), abs=1.5 / 200)
            expected = np.where(inside, edge - values[channel], 0).mean()
            assert float(area) == pytest.approx(expected, abs=1e-6)
        assert float(tables.below[channel, -1]) == pytest.approx(1.0)
        assert float(tables.mean[channel]) == pytest.approx(values[channel].mean())
        assert float(tables.square[channel]) == pytest.approx((values[channel] ** 2).mean())
    assert float(tables.square[2]) == 0
