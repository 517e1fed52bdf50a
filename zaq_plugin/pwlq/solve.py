"""Edges of every channel of a tensor, as its format chooses them."""

from __future__ import annotations

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.checks import check_finite, check_spec, check_tensor, normalize_axis
from zaq_plugin.pwlq.layout import channels_of, to_rows


def solve_edges(w: Tensor, spec: Format, axis: int | None = 0) -> Tensor:
    """Choose clip and breakpoints of every channel (PWLQ sections 3.2 and 3.3).

    Args:
        w: values to represent, any shape; statistics are taken in float32.
        spec: the format; its ``policy`` (or ``clip``) decides how.
        axis: channel axis, or None for one grid per tensor.

    Returns:
        (sides, channels, n + 1) float32 magnitudes p_1 <= ... <= p_n <= m in w's units; sides is
        (positive, negative) for asymmetric specs and has length 1 otherwise. A uniform spec has n
        = 0; for other formats see their ``solve``.

    Raises:
        TypeError: if w is no floating-point tensor or spec no spec.
        ValueError: if w is empty or contains NaN or infinity, the axis does not exist, or the
            policy is ``given``.
    """
    spec = check_spec(spec)
    check_tensor(w)
    axis = normalize_axis(w, axis)
    check_finite(w)
    return torch.ops.zaq.pwlq_solve(w.detach(), spec.to_json(), axis)


def edges_for(w: Tensor, spec: Format, axis: int | None) -> Tensor:
    """`solve_edges` without checks; axis is normalised."""
    # Contiguous, so that sums run in the same order for any memory layout.
    edges = spec.solve(to_rows(w, axis).contiguous())
    expected = (spec.sides, channels_of(w, axis), spec.edge_count)
    return edges.reshape(expected).contiguous()
