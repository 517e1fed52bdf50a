"""Pictures of a zero-shot run's curve: the loss's terms, and where the two networks differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zaq_plugin.report.page import Figure

_LAYER = "λ "


def split_curve(
    curve: Sequence[Mapping[str, float]],
) -> tuple[list[int], dict[str, list[float]], dict[str, list[float]]]:
    """Steps, terms by name, and λ by layer; what a point lacks takes the whole line away.

    Args:
        curve: ``curve`` of `zaq_plugin.zero_shot.FinetuneResult`.
    """
    steps = [int(point["step"]) for point in curve]
    names = [n for n in (curve[0] if curve else {}) if n != "step" and all(n in p for p in curve)]
    lines = {name: [float(point[name]) for point in curve] for name in names}
    layers = {n[len(_LAYER) :]: v for n, v in lines.items() if n.startswith(_LAYER)}
    return steps, {n: v for n, v in lines.items() if not n.startswith(_LAYER)}, layers


def training_figures(curve: Sequence[Mapping[str, float]]) -> list[Figure]:
    """The terms over the steps, and the layers' λ; nothing for a run without training.

    Args:
        curve: See `split_curve`.
    """
    from zaq_plugin.report import plots

    steps, terms, layers = split_curve(curve)
    figures = []
    if terms:
        figures.append(
            Figure(
                "Teacher and student",
                plots.discrepancy_curves(steps, terms),
                "How far the student is from its float teacher on synthetic images: terms of the "
                "training loss, then divergence and agreement on images that nothing trains on.",
            )
        )
    if layers:
        figures.append(
            Figure(
                "Where they differ",
                plots.layer_weight_lines(steps, layers),
                "λ by layer: the softmax over layers of the distance between the two networks' "
                "channel relation maps. The largest is where the student is furthest off.",
            )
        )
    return figures
