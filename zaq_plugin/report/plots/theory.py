"""The paper's own figure: where the best breakpoint lies for the two ideal densities."""

from __future__ import annotations

import torch

from zaq_plugin.pwlq.theory import CLOSED_FORM_RANGE, closed_form_breakpoint, optimal_breakpoint
from zaq_plugin.report.plots._figure import BLUE, VERMILION, figure, plain, style, to_svg


def optimal_breakpoint_figure(low: float = 1.5, high: float = 10.0) -> str:
    """Optimal breakpoint p*/m over the clip m, Gaussian and Laplacian (PWLQ, Figure 1, right).

    Solid: the exact minimiser of the expected error. Dashed: the paper's closed forms, on the
    interval that they were fitted on. m is in standard deviations.

    Returns:
        SVG text.

    Raises:
        ValueError: an empty or non-positive interval.
    """
    if not 0 < low < high:
        raise ValueError(f"expected 0 < low < high, got low={low} and high={high}.")
    m = torch.linspace(low, high, 120, dtype=torch.float64)
    begin, end = max(low, CLOSED_FORM_RANGE[0]), min(high, CLOSED_FORM_RANGE[1])
    fitted = torch.linspace(begin, end, 60, dtype=torch.float64)
    with style():
        fig = figure()
        axes = fig.subplots()
        for density, color in (("gaussian", BLUE), ("laplacian", VERMILION)):
            exact = optimal_breakpoint(m, density) / m  # type: ignore[arg-type]
            name = density.capitalize()
            axes.plot(m, exact, color=color, label=f"{name}, exact", gid=f"{density}-exact")
            if begin < end:
                closed = closed_form_breakpoint(fitted, density) / fitted  # type: ignore[arg-type]
                axes.plot(
                    fitted,
                    closed,
                    color="#1b1b1b",
                    linewidth=1.2,
                    linestyle=(0, (4, 3)) if density == "gaussian" else (0, (1, 1.5)),
                    label=f"{name}, closed form",
                    gid=f"{density}-closed",
                )
        axes.set_xlabel("clip m (standard deviations)")
        axes.set_ylabel("optimal breakpoint p*/m")
        axes.set_xlim(low, high)
        axes.set_ylim(0, 0.55)
        plain(axes)
        axes.legend(ncols=2, loc="lower left")
        return to_svg(fig, "Optimal breakpoint p*/m over the clip m, Gaussian and Laplacian")
