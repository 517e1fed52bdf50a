"""Passes over a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from zaq_onnx.files import serialize
from zaq_onnx.graph import Graph
from zaq_onnx.passes import INTEGERS, run
from zaq_onnx.runtimes import ort_session, run_ort


def test_passes_that_run_again_keep_what_a_file_computes(case: Any) -> None:
    graph = Graph(onnx.load(case.plain))
    run(graph, INTEGERS)
    again, before = (ort_session(m, optimize=False) for m in (graph.to_model(), case.plain))
    for now, was in zip(*(run_ort(s, (case.images,)) for s in (again, before)), strict=True):
        assert np.array_equal(now, was)


def test_passes_that_have_run_change_nothing(case: Any) -> None:
    graph = Graph(onnx.load(case.plain))
    run(graph, INTEGERS)
    once = serialize(graph.to_model())
    run(graph, INTEGERS)
    assert serialize(graph.to_model()) == once


def test_passes_run_in_their_order() -> None:
    order: list[str] = []
    run(Graph(onnx.ModelProto()), [lambda _: order.append("first"), lambda _: order.append("then")])
    assert order == ["first", "then"]
