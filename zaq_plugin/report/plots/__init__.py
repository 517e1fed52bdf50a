"""Plots as SVG strings: deterministic, colour-blind-safe, readable in print.

They need matplotlib (extra ``report``), which is imported when the first one is drawn.
"""

from zaq_plugin.report.plots.results import accuracy_over_bits
from zaq_plugin.report.plots.theory import optimal_breakpoint_figure
from zaq_plugin.report.plots.training import discrepancy_curves, layer_weight_lines
from zaq_plugin.report.plots.weights import (
    ErrorCurve,
    error_curve,
    error_over_breakpoint,
    weight_histogram,
)

__all__ = [
    "ErrorCurve",
    "accuracy_over_bits",
    "discrepancy_curves",
    "error_curve",
    "error_over_breakpoint",
    "layer_weight_lines",
    "optimal_breakpoint_figure",
    "weight_histogram",
]
