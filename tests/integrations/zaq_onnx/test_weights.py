"""The table of a file's weights: found once, encoded once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import zaq_onnx
from zaq_onnx import constants, weights
from zaq_onnx.files import read
from zaq_onnx.graph import Graph


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often the codes of each weight are searched."""
    counts: Counter[bytes] = Counter()
    encode = weights.encode

    def counted(rows: Any) -> Any:
        counts[rows.tobytes()] += 1
        return encode(rows)

    monkeypatch.setattr(weights, "encode", counted)
    return counts


def test_an_export_searches_each_weight_once(
    case: Any, searched: Counter[bytes], tmp_path: Path
) -> None:
    zaq_onnx.export(case.model, (case.images,), tmp_path / "a.onnx", check=False)
    assert set(searched.values()) == {1}
    assert len(searched) == sum(record.quantized for record in case.exported.layers)


def test_packing_searches_each_weight_once_and_unpacking_none(
    pt2e_case: Any, searched: Counter[bytes], tmp_path: Path
) -> None:
    zaq_onnx.pack(pt2e_case.plain, tmp_path / "packed.onnx")
    assert set(searched.values()) == {1}
    searched.clear()
    zaq_onnx.unpack(tmp_path / "packed.onnx", tmp_path / "plain.onnx")
    assert not searched


def test_a_packed_file_is_unfolded_once(pt2e_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    begin = constants.Evaluator.__init__

    def counted(self: Any, graph: Graph) -> None:
        made.append(graph)
        begin(self, graph)

    monkeypatch.setattr(constants.Evaluator, "__init__", counted)
    zaq_onnx.info(pt2e_case.packed)
    assert len(made) == 1


def test_contents_are_those_of_the_unpacked_file(pt2e_case: Any) -> None:
    packed, plain = (read(path).weights for path in (pt2e_case.packed, pt2e_case.plain))
    integers = {t.name: t for t in onnx.load(pt2e_case.plain).graph.initializer}
    assert packed.named.keys() == plain.named.keys()
    assert any(weight.packed for weight in packed)
    for name, weight in packed.named.items():
        assert np.array_equal(weight.integers, onnx.numpy_helper.to_array(integers[name]))
        assert packed.by_output[weight.node.output[0]] is weight
