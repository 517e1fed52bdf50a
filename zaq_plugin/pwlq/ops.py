"""The format as ``torch.library`` operators, namespace ``zaq``.

The spec travels as its JSON text, so that graphs which contain the operators can be saved and
loaded. All of them take checked
input: the public functions in `functional` check it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zaq_plugin.pwlq import ranges, statistics
from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.kernels import (
    Codebook,
    cache_blocks,
    channels_of,
    codebook_dtype,
    codebook_of,
    from_rows,
    from_rows_shape,
    look_up,
    select,
    to_rows,
)
from zaq_plugin.pwlq.levels import build_grid
from zaq_plugin.pwlq.overflow import guarded
from zaq_plugin.pwlq.registry import spec_from_json
from zaq_plugin.pwlq.rounding import fake_quantized
from zaq_plugin.pwlq.straight_through import edge_gradients, value_gradient
from zaq_plugin.pwlq.tops import solve_tops


def code_dtype(spec: Format) -> torch.dtype:
    """uint8 where the codes fit, else int16."""
    return torch.uint8 if spec.stored_bits <= 8 else torch.int16


@torch.library.custom_op("zaq::pwlq_solve", mutates_args=())
def pwlq_solve(w: Tensor, spec: str, axis: int | None) -> Tensor:
    """Edges (sides, channels, n + 1) of w by the spec's policy."""
    return ranges.edges_for(w, spec_from_json(spec), axis)


@pwlq_solve.register_fake
def _(w: Tensor, spec: str, axis: int | None) -> Tensor:
    s = spec_from_json(spec)
    shape = (s.sides, channels_of(w, axis), s.edge_count)
    return w.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("zaq::pwlq_tops", mutates_args=())
def pwlq_tops(w: Tensor, edges: Tensor, spec: str, axis: int | None) -> Tensor:
    """(channels,) largest int8 level of each, of w and its edges (sides, channels, n + 1)."""
    return solve_tops(w, edges, spec_from_json(spec), axis)


@pwlq_tops.register_fake
def _(w: Tensor, edges: Tensor, spec: str, axis: int | None) -> Tensor:
    return w.new_empty((channels_of(w, axis),), dtype=torch.float32)


@torch.library.custom_op("zaq::pwlq_quantize", mutates_args=())
def pwlq_quantize(
    w: Tensor, edges: Tensor, spec: str, axis: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (w's shape, contiguous), codebook (channels, levels) and scale (channels,)."""
    s = spec_from_json(spec)
    grid = build_grid(edges, s)
    book = codebook_of(grid)
    rows = look_up(to_rows(w, axis), grid, edges, s, book.rank.to(code_dtype(s)))
    codes = from_rows_shape(rows, tuple(w.shape), axis).contiguous()
    if s.guarded:
        codes = _guarded_codes(codes, book, edges, s, axis)
    return codes, book.levels.to(codebook_dtype(s)), book.scale.clone()


def _guarded_codes(
    codes: Tensor, book: Codebook, edges: Tensor, spec: Format, axis: int | None
) -> Tensor:
    """Codes of levels that do not overflow."""
    rows, levels = to_rows(codes, axis), book.levels.to(torch.int8)
    nearest = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    for channel, element in cache_blocks(rows):
        select(levels[channel], rows[channel, element].int(), nearest[channel, element])
    before = from_rows_shape(nearest, tuple(codes.shape), axis)
    lowered = guarded(before, edges, spec, axis)
    if lowered is before:
        return codes
    moved = to_rows(lowered != before, axis)
    targets = to_rows(lowered, axis).to(book.levels).contiguous()
    places = torch.searchsorted(book.levels, targets).to(codes.dtype)
    merged = torch.where(moved, places, to_rows(codes, axis))
    return from_rows_shape(merged, tuple(codes.shape), axis).contiguous()


@pwlq_quantize.register_fake
def _(w: Tensor, edges: Tensor, spec: str, axis: int | None) -> tuple[Tensor, Tensor, Tensor]:
    s = spec_from_json(spec)
    channels = channels_of(w, axis)
    codes = w.new_empty(w.shape, dtype=code_dtype(s))
    codebook = w.new_empty((channels, s.num_levels), dtype=codebook_dtype(s))
    return codes, codebook, w.new_empty((channels,), dtype=torch.float32)


@torch.library.custom_op("zaq::pwlq_dequantize", mutates_args=())
def pwlq_dequantize(codes: Tensor, codebook: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    """float32 values ``codebook[c, code] * scale[c]``, contiguous."""
    return statistics.dequantize(codes, codebook, scale, axis)


@pwlq_dequantize.register_fake
def _(codes: Tensor, codebook: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    return codes.new_empty(codes.shape, dtype=torch.float32)


@torch.library.custom_op("zaq::pwlq_fake_quantize", mutates_args=())
def pwlq_fake_quantize(w: Tensor, edges: Tensor, spec: str, axis: int | None) -> Tensor:
    """Differentiable quantize-dequantize; see `functional.fake_quantize`."""
    return fake_quantized(w, edges, spec_from_json(spec), axis)


@pwlq_fake_quantize.register_fake
def _(w: Tensor, edges: Tensor, spec: str, axis: int | None) -> Tensor:
    return torch.empty_like(w)


def fake_quantize_gradients(
    grad: Tensor, w: Tensor, edges: Tensor, spec: Format, axis: int | None, need_edges: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients with respect to w and, if needed, to the edges."""
    grad_rows, rows = to_rows(grad, axis), to_rows(w, axis)
    to_w = from_rows(value_gradient(grad_rows, rows, edges, spec), w, axis)
    if not need_edges:
        return to_w, None
    quantized = to_rows(fake_quantized(w, edges, spec, axis), axis)
    return to_w, edge_gradients(grad_rows, rows, quantized, edges, spec).to(edges.dtype)


@torch.library.custom_op("zaq::pwlq_fake_quantize_backward", mutates_args=())
def pwlq_fake_quantize_backward(
    grad: Tensor, w: Tensor, edges: Tensor, spec: str, axis: int | None, need_edges: bool
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to w and to the edges (zeros unless needed)."""
    to_w, to_edges = fake_quantize_gradients(grad, w, edges, spec_from_json(spec), axis, need_edges)
    return to_w, torch.zeros_like(edges) if to_edges is None else to_edges


@pwlq_fake_quantize_backward.register_fake
def _(
    grad: Tensor, w: Tensor, edges: Tensor, spec: str, axis: int | None, need_edges: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(w), torch.empty_like(edges)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    w, edges, ctx.spec, ctx.axis = inputs
    ctx.save_for_backward(w, edges)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    w, edges = ctx.saved_tensors
    to_w, to_edges = torch.ops.zaq.pwlq_fake_quantize_backward(
        grad, w, edges, ctx.spec, ctx.axis, ctx.needs_input_grad[1]
    )
    return to_w, to_edges if ctx.needs_input_grad[1] else None, None, None


pwlq_fake_quantize.register_autograd(_backward, setup_context=_save)
