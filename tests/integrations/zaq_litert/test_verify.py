"""What `verify` sees in a file: every kind of wrong file has its own words."""

from pathlib import Path
from typing import Any

import pytest
from device_tools import with_another_weight
from torch import Tensor, nn


def test_a_good_file(exported: Any, images: Tensor) -> None:
    import zaq_litert

    verdict = zaq_litert.verify(exported.path, exported.model, images).require()
    assert (verdict.integer_layers, verdict.float_layers, verdict.weights) == (5, 0, 5)
    assert verdict.error <= verdict.tolerance
    assert not verdict.remarks
    assert "OK under LiteRT with and without XNNPACK, batches of 1" in str(verdict)


def test_a_float_file_never_passes(
    net: nn.Module, exported: Any, images: Tensor, tmp_path: Path
) -> None:
    import zaq_litert
    from zaq_litert.lowering import write_float

    path = tmp_path / "float.tflite"
    write_float(net, (images[:1],), path)
    verdict = zaq_litert.verify(path, exported.model, images)
    assert (verdict.integer_layers, verdict.float_layers) == (0, 5)
    assert verdict.problems[0] == "no layer runs in integers: nothing in this file is quantized."


def test_a_weight_that_differs_is_named(exported: Any, images: Tensor) -> None:
    import zaq_litert

    other = with_another_weight(exported.model)
    verdict = zaq_litert.verify(exported.path, other, images)
    text = "block.conv1: its weight is not in the file; the nearest differs in 1 integers."
    assert text in verdict.problems


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_files(damage: str, exported: Any, images: Tensor, tmp_path: Path) -> None:
    import zaq_litert

    data = Path(exported.path).read_bytes()
    path = tmp_path / "damaged.tflite"
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"no model at all"}[damage])
    verdict = zaq_litert.verify(path, exported.model, images)
    assert len(verdict.problems) == 1
    assert str(path) in verdict.problems[0]


def test_what_is_no_graph_is_refused(net: nn.Module, exported: Any, images: Tensor) -> None:
    import zaq_litert

    with pytest.raises(TypeError, match=r"export\(...\).model; got Net"):
        zaq_litert.verify(exported.path, net, images)
    with pytest.raises(FileNotFoundError):
        zaq_litert.verify("nowhere.tflite", exported.model, images)
