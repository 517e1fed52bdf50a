"""Plots of zero-shot training: discrepancies and layer weights over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zaq_plugin.report.plots._figure import DASHES, SERIES, figure, plain, style, to_svg


def discrepancy_curves(
    steps: Sequence[int], curves: Mapping[str, Sequence[float]], *, best_step: int | None = None
) -> str:
    """Discrepancies over the steps, one panel each, for they differ in scale.

    Args:
        steps: shape (T,).
        curves: name, such as ``D_o`` or ``D_f``, to T values.
        best_step: the step whose state was kept; marked.

    Returns:
        SVG text.

    Raises:
        ValueError: no curve, or one whose length is not that of `steps`.
    """
    _check("discrepancy_curves", steps, curves)
    with style():
        fig = figure(5.4, 1.0 + 1.55 * len(curves))
        panels = fig.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for index, ((name, values), axes) in enumerate(zip(curves.items(), panels, strict=True)):
            color = SERIES[index % len(SERIES)]
            axes.plot(steps, values, color=color, marker=_marker(steps), gid=f"curve-{index}")
            axes.set_ylabel(_symbol(name))
            if all(v > 0 for v in values) and max(values) > 50 * min(values):
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=min(0.0, *values))
            if best_step is not None:
                axes.axvline(best_step, color="#1b1b1b", linestyle=(0, (4, 2)), linewidth=1.0)
            plain(axes)
        if best_step is not None:
            panels[0].annotate(
                f"kept: step {best_step}",
                (best_step, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        panels[-1].set_xlabel("step")
        return to_svg(fig, f"{', '.join(curves)} over the training steps")


def layer_weight_lines(steps: Sequence[int], weights: Mapping[str, Sequence[float]]) -> str:
    """The layers' weights λ in D_f over the steps, one line a tap (ZAQ, EMA of the softmax).

    Args:
        steps: shape (T,).
        weights: tap name to T values.

    Returns:
        SVG text.

    Raises:
        ValueError: no tap, or one whose length is not that of `steps`.
    """
    _check("layer_weight_lines", steps, weights)
    with style():
        rows = (len(weights) + 2) // 3
        fig = figure(5.4, 3.3 + 0.2 * rows)
        axes = fig.subplots()
        for index, (name, values) in enumerate(weights.items()):
            axes.plot(
                steps,
                values,
                color=SERIES[index % len(SERIES)],
                linestyle=DASHES[index // len(SERIES) % len(DASHES)],
                marker=_marker(steps),
                label=name,
                gid=f"layer-{index}",
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("layer weight λ")
        plain(axes)
        fig.legend(loc="outside lower center", ncols=3)
        return to_svg(fig, "Layer weights λ over the training steps")


def _marker(steps: Sequence[int]) -> str | None:
    """One point is no line, and needs a mark to be seen."""
    return "o" if len(steps) == 1 else None


def _symbol(name: str) -> str:
    return {"D_o": "$D_o$", "D_f": "$D_f$", "L_a": "$L_a$"}.get(name, name)


def _check(plot: str, steps: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
    if not curves or not len(steps):
        raise ValueError(f"{plot} needs at least one curve and one step, got none.")
    for name, values in curves.items():
        if len(values) != len(steps):
            raise ValueError(
                f"{plot}: curve '{name}' has {len(values)} values for {len(steps)} steps; "
                "record one value a step."
            )
