"""A run's curve, split and drawn."""

from __future__ import annotations

from zaq_plugin.report import split_curve, training_figures

CURVE = [
    {"step": 5, "KL": 0.5, "λ a": 0.4, "λ b": 0.6, "once": 1.0},
    {"step": 10, "KL": 0.25, "λ a": 0.3, "λ b": 0.7},
]


def test_terms_and_layers_are_told_apart() -> None:
    steps, terms, layers = split_curve(CURVE)
    assert steps == [5, 10]
    assert terms == {"KL": [0.5, 0.25]}
    assert layers == {"a": [0.4, 0.3], "b": [0.6, 0.7]}
    assert split_curve([]) == ([], {}, {})


def test_figures() -> None:
    assert [f.title for f in training_figures(CURVE)] == [
        "Teacher and student",
        "Where they differ",
    ]
    assert [f.title for f in training_figures([{"step": 1, "KL": 0.5}])] == ["Teacher and student"]
    assert training_figures([]) == []
