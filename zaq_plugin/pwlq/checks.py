"""Input checks: every message says what came, what was expected and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import Format

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_spec(spec: object) -> Format:
    """Raise TypeError unless spec is a `Format`."""
    if not isinstance(spec, Format):
        raise TypeError(
            f"spec must be a format such as a PWLQSpec; got {type(spec).__name__}. "
            "For 4 MAC bits write PWLQSpec(bits=4)."
        )
    return spec


def check_tensor(w: Tensor, name: str = "w") -> None:
    """Type, dtype and emptiness of a tensor to be quantized.

    Raises:
        TypeError: for anything but a floating-point tensor.
        ValueError: for an empty tensor.
    """
    if not isinstance(w, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(w).__name__}.")
    if w.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name} must be a floating-point tensor; got {w.dtype}. "
            "Integer weights are already quantized: dequantize them first, "
            "or leave this layer out."
        )
    if w.numel() == 0:
        raise ValueError(
            f"{name} is empty, shape {tuple(w.shape)}: there is nothing to quantize. "
            "Leave this layer out."
        )


def check_finite(w: Tensor, name: str = "w") -> None:
    """Raise ValueError if w contains NaN or infinity (one fused pass over the data)."""
    low, high = torch.aminmax(w.detach())
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return
    bad = ~torch.isfinite(w.detach())
    where = tuple(int(i) for i in bad.nonzero()[0])
    raise ValueError(
        f"{name} contains {int(bad.sum())} NaN or infinite value(s), the first at index {where} "
        f"({float(w.detach()[where])}). Repair the checkpoint, or leave this layer out."
    )


def normalize_axis(w: Tensor, axis: int | None, name: str = "w") -> int | None:
    """The axis counted from the front; None means per tensor.

    Raises:
        TypeError: if axis is neither int nor None.
        ValueError: if w has no such axis.
    """
    if axis is None:
        return None
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise TypeError(f"axis must be an int or None (per tensor); got {axis!r}.")
    if not -w.dim() <= axis < w.dim():
        raise ValueError(
            f"axis {axis} does not exist in {name} of shape {tuple(w.shape)}; "
            f"give one from {-w.dim()} to {w.dim() - 1}, or None for one grid per tensor."
        )
    return axis % w.dim()


def check_edges(edges: Tensor, spec: Format, channels: int) -> None:
    """Shape, order and sign of given edges, (sides, channels, n + 1), or n + 2 with a reach.

    Raises:
        TypeError: if edges is no floating-point tensor.
        ValueError: for a wrong shape, a negative or non-finite value, or unordered edges.
    """
    if not isinstance(edges, Tensor) or not edges.is_floating_point():
        kind = getattr(edges, "dtype", type(edges).__name__)
        raise TypeError(f"edges must be a floating-point tensor; got {kind}.")
    expected = (spec.sides, channels, spec.edge_count)
    reaching = (*expected[:2], expected[2] + 1) if spec.guarded else expected
    if tuple(edges.shape) not in (expected, reaching):
        raise ValueError(
            f"edges has shape {tuple(edges.shape)}, expected {expected}: "
            "(sides, channels, breakpoints + 1), the last entry of each row being the clip m."
        )
    values = edges.detach()
    finite = bool(torch.isfinite(values).all())
    if not finite or (not spec.signed_edges and bool((values < 0).any())):
        wanted = "" if spec.signed_edges else " and >= 0 (magnitudes p_1 <= ... <= p_n <= m)"
        raise ValueError(f"edges must be finite{wanted}.")
    if bool((values[..., 1:] < values[..., :-1]).any()):
        raise ValueError("edges must ascend within a channel: p_1 <= ... <= p_n <= m.")
