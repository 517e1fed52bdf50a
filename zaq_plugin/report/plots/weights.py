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
from zaq_plugin.report.plots._figure import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    VERMILION,
    figure,
    plain,
    style,
    to_svg,
)


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
    with style():
        return _draw_histogram(rows[channel], levels, edges[:, channel], q, title)


def _draw_histogram(row: Tensor, levels: Tensor, edges: Tensor, q: PWLQTensor, title: str) -> str:
    fig = figure()
    top, strip = fig.subplots(2, 1, sharex=True, height_ratios=[7, 1])
    bins = max(12, min(80, int(2 * row.numel() ** 0.5)))
    top.hist(row.numpy(), bins=bins, color=MUTED, alpha=0.55, gid="weights")
    top.set_ylabel("weights")
    plain(top)
    sides = [(1.0, edges[0])]
    if q.spec.symmetry != "one-sided":
        sides.append((-1.0, edges[-1]))
    center = torch.ones_like(levels, dtype=torch.bool)
    for sign, marks in sides:
        if len(marks) > 1:
            center &= ~((levels * sign) > marks[0] * (1 + 1e-6))
        for index, mark in enumerate(marks.tolist()):
            last = index == len(marks) - 1
            label = "m" if last else ("p" if len(marks) == 2 else f"p{'₁₂₃'[index]}")
            line: dict[str, Any] = {
                "color": INK if last else VERMILION,
                "linewidth": 1.1,
                "linestyle": (0, (1, 1.5)) if last else (0, (4, 2)),
            }
            for axes in (top, strip):
                axes.axvline(sign * mark, **line)
            top.annotate(
                label if sign > 0 else f"−{label}",
                (sign * mark, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                color=line["color"],
                fontsize=9,
            )
    for mask, color, gid in ((center, BLUE, "levels-center"), (~center, VERMILION, "levels-tail")):
        if mask.any():
            strip.vlines(levels[mask].numpy(), 0, 1, color=color, linewidth=1.6, gid=gid)
    strip.set_ylim(0, 1)
    strip.set_yticks([])
    strip.set_ylabel("levels", rotation=0, ha="right", va="center")
    strip.spines["left"].set_visible(False)
    strip.set_xlabel("weight")
    spec = q.spec
    top.set_title(f"{title}: {spec.label}" if title else spec.label, pad=16)
    text = (
        f"Histogram of {row.numel()} weights with the {len(torch.unique(levels))} levels of "
        f"{spec.label}"
    )
    return to_svg(fig, f"{text}; {title}" if title else text)


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
    with style():
        fig = figure()
        axes = fig.subplots()
        label = f"PWLQ, {spec.mac_bits} MAC / {spec.stored_bits} stored bits"
        axes.plot(curve.fractions, _decibel(curve.errors), color=BLUE, label=label, gid="error")
        for index, (text, (x, y)) in enumerate(curve.marks.items()):
            look: dict[str, Any] = {"marker": "o", "markersize": 6}
            if index:
                look = {"marker": "D", "markersize": 10, "fillstyle": "none"}
            axes.plot(
                [x],
                [_decibel(y)],
                color=VERMILION,
                linestyle="none",
                label=f"{text}: {x:.3f}",
                gid=f"mark-{index}",
                zorder=4,
                **look,
            )
        dashes = [(0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2))]
        colors = [GREEN, MUTED, INK] if len(curve.lines) > 2 else [MUTED, INK]
        for (text, y), dash, color in zip(curve.lines.items(), dashes, colors, strict=False):
            axes.axhline(_decibel(y), color=color, linestyle=dash, linewidth=1.4, label=text)
        axes.set_xlim(0, 1)
        axes.set_xlabel("breakpoint over clip, p/m")
        axes.set_ylabel("squared error / signal (dB)")
        plain(axes)
        what = source.capitalize() if isinstance(source, str) else name or "weights"
        clip_note = f", m = {clip:g} σ" if isinstance(source, str) else ""
        axes.set_title(f"{what}{clip_note}")
        fig.legend(loc="outside lower center", ncols=2)
        return to_svg(fig, f"Squared error over p/m of {what}, {label}")


def _decibel(ratio: Any) -> Any:
    return 10 * torch.log10(torch.as_tensor(ratio, dtype=torch.float64).clamp(min=1e-15))
