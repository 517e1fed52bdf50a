"""Plots of weights: where the levels lie, and what the breakpoint's place costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from zaq_plugin.pwlq import (
    PWLQSpec,
    PWLQTensor,
    UniformSpec,
    fake_quantize,
    solve_edges,
)
from zaq_plugin.pwlq.theory import (
    closed_form_breakpoint,
    expected_error,
    optimal_breakpoint,
    uniform_expected_error,
)
from zaq_plugin.report.charts import BLUE, DASHES, GREEN, INK, MUTED, VERMILION, Chart, Entry
from zaq_plugin.report.scales import Scale


def weight_histogram(
    w: Tensor,
    q: PWLQTensor,
    *,
    channel: int | None = None,
    edges: Tensor | None = None,
    name: str = "",
) -> str:
    """Histogram of one channel's weights, its levels below, breakpoints p and clips m marked.

    Args:
        w: the float weights.
        q: the same weights quantized.
        channel: which channel; by default the one whose largest weight is the median.
        edges: clips and breakpoints of all channels, (sides, channels, n + 1); by default those
            that the spec's policy chooses for w.
        name: the layer's name, for the title.

    Returns:
        SVG text.

    Raises:
        ValueError: shapes that do not belong together, or a channel that does not exist.
    """
    if w.shape != q.codes.shape:
        raise ValueError(
            f"weight_histogram: w has shape {tuple(w.shape)}, q {tuple(q.codes.shape)}; "
            "pass a tensor and what quantize() made of it."
        )
    values = w.detach().float()
    rows = values.reshape(1, -1) if q.axis is None else values.movedim(q.axis, 0).flatten(1)
    if channel is None:
        channel = int(rows.abs().amax(1).argsort(stable=True)[(len(rows) - 1) // 2])
    if not 0 <= channel < len(rows):
        raise ValueError(
            f"weight_histogram: channel {channel} does not exist; "
            f"this tensor has channels 0 to {len(rows) - 1}."
        )
    if edges is None:
        edges = solve_edges(w, q.spec, q.axis)
    levels = q.codebook[channel].float() * q.scale[channel].float()
    title = f"{name}, channel {channel}" if name and q.axis is not None else name
    return _draw_histogram(rows[channel], levels, edges[:, channel], q, title)


def _draw_histogram(row: Tensor, levels: Tensor, edges: Tensor, q: PWLQTensor, title: str) -> str:
    spec = q.spec
    words = f"Histogram of {row.numel()} weights with the {len(torch.unique(levels))} levels of "
    words += f"{spec.label}; {title}" if title else spec.label
    chart = Chart(words, 320, title=f"{title}: {spec.label}" if title else spec.label)
    bins = max(12, min(80, int(2 * row.numel() ** 0.5)))
    counts, ends = (x.tolist() for x in torch.histogram(row.cpu().double(), bins))
    seen = [*ends, *levels.tolist(), *edges.flatten().tolist()]
    seen += [] if spec.symmetry == "one-sided" else (-edges[-1]).tolist()
    x = Scale.over(seen, 0.03)
    top = chart.panel(x, Scale(0, 1.05 * max(counts)), top=50, bottom=94)
    strip = chart.panel(x, Scale(0, 1), top=238)
    top.axes(y="weights", xs=[])
    top.bars(ends, counts, MUTED)
    strip.axes("weight", ys=[])
    strip.words(strip.left - 8, (strip.top + strip.bottom) / 2 + 4, "levels", "end")
    sides = [(1.0, edges[0])]
    if spec.symmetry != "one-sided":
        sides.append((-1.0, edges[-1]))
    center = torch.ones_like(levels, dtype=torch.bool)
    for sign, marks in sides:
        if len(marks) > 1:
            center &= ~((levels * sign) > marks[0] * (1 + 1e-6))
        for index, mark in enumerate(marks.tolist()):
            last = index == len(marks) - 1
            label = "m" if last else ("p" if len(marks) == 2 else f"p{'₁₂₃'[index]}")
            color, dash = (INK, DASHES[2]) if last else (VERMILION, DASHES[1])
            for panel in (top, strip):
                panel.upright(sign * mark, color, dash)
            said = label if sign > 0 else f"−{label}"
            top.words(top.at_x(sign * mark), top.top - 4, said, "middle", color)
    for mask, color, name in ((center, BLUE, "levels-center"), (~center, VERMILION, "levels-tail")):
        if mask.any():
            strip.stems(levels[mask].tolist(), color, name)
    return chart.svg()


@dataclass(frozen=True)
class ErrorCurve:
    """Squared error over the breakpoint's place.

    Attributes:
        fractions: p/m, shape (K,).
        errors: squared error relative to the signal's power, shape (K,).
        marks: name to (p/m, error): places worth a dot.
        lines: name to error: what other formats or policies reach.
    """

    fractions: Tensor
    errors: Tensor
    marks: dict[str, tuple[float, float]]
    lines: dict[str, float]


def error_curve(
    source: Tensor | Literal["gaussian", "laplacian"],
    spec: PWLQSpec,
    *,
    axis: int | None = 0,
    clip: float = 4.0,
    points: int = 49,
) -> ErrorCurve:
    """What `error_over_breakpoint` draws; same arguments.

    Raises:
        ValueError: more than one breakpoint, or an unknown distribution.
    """
    if spec.breakpoints != 1:
        raise ValueError(
            f"the error over p/m is a curve for one breakpoint only, got {spec.breakpoints}; "
            "pass a spec with breakpoints=1."
        )
    fractions = torch.linspace(0.02, 0.98, points, dtype=torch.float64)
    if isinstance(source, str):
        if source not in ("gaussian", "laplacian"):
            raise ValueError(
                f"unknown distribution {source!r}; expected 'gaussian', 'laplacian' or a tensor."
            )
        m = torch.tensor(clip, dtype=torch.float64)
        errors = expected_error(fractions * m, m, spec.bits, source)
        best, closed = optimal_breakpoint(m, source), closed_form_breakpoint(m, source)
        marks = {
            "exact optimal p/m": (
                float(best / m),
                float(expected_error(best, m, spec.bits, source)),
            )
        }
        if 3.0 <= clip <= 10.0:
            error = expected_error(closed, m, spec.bits, source)
            marks["closed-form p/m"] = (float(closed / m), float(error))
        widths = dict.fromkeys((spec.mac_bits, spec.stored_bits))
        lines = {f"uniform, {b} bits stored": float(uniform_expected_error(m, b)) for b in widths}
        return ErrorCurve(fractions, errors, marks, lines)
    power = float(source.detach().double().square().mean()) or 1.0

    def relative(values: Tensor) -> float:
        return float((values.double() - source.detach().double()).square().mean()) / power

    with torch.no_grad():
        edges = (
            solve_edges(source, spec, axis)
            if spec.policy != "given"
            else solve_edges(source, replace(spec, policy="joint"), axis)
        )
        fixed = replace(spec, policy="given")
        swept = []
        for fraction in fractions.tolist():
            trial = edges.clone()
            trial[..., 0] = trial[..., 1] * fraction
            swept.append(relative(fake_quantize(source, fixed, axis, edges=trial)))
        errors = torch.tensor(swept, dtype=torch.float64)
        place = int(errors.argmin())
        marks = {"best p/m for all channels": (float(fractions[place]), float(errors[place]))}
        chosen = relative(fake_quantize(source, fixed, axis, edges=edges))
        lines = {f"{spec.policy}: each channel its own p and m": chosen}
        for b in dict.fromkeys((spec.mac_bits, min(8, spec.stored_bits))):
            uniform = UniformSpec(bits=b, symmetry=spec.symmetry, clip="mse")
            lines[f"uniform, best clip, {b} bits stored"] = relative(
                fake_quantize(source, uniform, axis)
            )
    return ErrorCurve(fractions, errors, marks, lines)


def error_over_breakpoint(
    source: Tensor | Literal["gaussian", "laplacian"],
    spec: PWLQSpec,
    *,
    axis: int | None = 0,
    clip: float = 4.0,
    name: str = "",
) -> str:
    """Squared error over p/m, in dB, with its optimum, and what uniform grids reach.

    A tensor is quantized for real, every channel and side at the same p/m and at the clip that the
    spec's policy chooses. A distribution's error is the paper's expectation (PWLQ, section 3.2).

    Args:
        source: weights, or the name of a distribution of unit variance.
        spec: the format, one breakpoint.
        axis: channel axis of the weights, None per tensor.
        clip: m of a distribution, in standard deviations.
        name: what the weights are called, for the title.

    Returns:
        SVG text.
    """
    curve = error_curve(source, spec, axis=axis, clip=clip)
    label = f"PWLQ, {spec.mac_bits} MAC / {spec.stored_bits} stored bits"
    what = source.capitalize() if isinstance(source, str) else name or "weights"
    clip_note = f", m = {clip:g} σ" if isinstance(source, str) else ""
    chart = Chart(f"Squared error over p/m of {what}, {label}", title=f"{what}{clip_note}")
    errors, marks = _decibel(curve.errors).tolist(), list(curve.marks.items())
    levels = {text: float(_decibel(y)) for text, y in curve.lines.items()}
    heights = [*errors, *levels.values(), *(float(_decibel(y)) for _, (_, y) in marks)]
    panel = chart.panel(Scale(0, 1), Scale.over(heights))
    panel.axes("breakpoint over clip, p/m", "squared error / signal (dB)")
    panel.line(curve.fractions.tolist(), errors, BLUE, name="error")
    entries = [Entry(label, BLUE)]
    for index, (text, (x, y)) in enumerate(marks):
        shape = "diamond" if index else "disc"
        panel.mark(x, float(_decibel(y)), VERMILION, shape, hollow=index > 0, name=f"mark-{index}")
        told = f"{text}: {x:.3f}"
        entries.append(Entry(told, VERMILION, marker=shape, hollow=index > 0, line=False))
    colors = [GREEN, MUTED, INK] if len(levels) > 2 else [MUTED, INK]
    for (text, y), dash, color in zip(levels.items(), DASHES[1:], colors, strict=False):
        panel.across(y, color, dash)
        entries.append(Entry(text, color, dash))
    chart.legend(entries)
    return chart.svg()


def _decibel(ratio: Any) -> Any:
    return 10 * torch.log10(torch.as_tensor(ratio, dtype=torch.float64).clamp(min=1e-15))
