"""An export is proved on its example inputs: what is wrong is named, and no file is left."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper

import zaq_onnx

checking, exporting = import_module("zaq_onnx.equivalence"), import_module("zaq_onnx.export")


def enlarged(model: ModelProto, layer: str = "wide") -> ModelProto:
    """The model with the scales of a layer eight times as large."""
    for tensor in model.graph.initializer:
        if tensor.name == f"{layer}.scale":
            tensor.CopyFrom(numpy_helper.from_array(8 * numpy_helper.to_array(tensor), tensor.name))
            return model
    raise AssertionError(f"{layer} has no scale")


def break_file(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    stock: Callable[..., Any] = exporting.pack_model
    monkeypatch.setattr(
        exporting, "pack_model", lambda proto, **options: stock(enlarged(proto, layer), **options)
    )


@pytest.mark.slow
def test_a_wrong_file_names_the_layer(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path, images = case.model, tmp_path / "model.onnx", case.images
    break_file(monkeypatch, "wide")
    words = (
        r"the file does not compute what the model computes: .* -?\d+\.\d dB \(\d+ are demanded\), "
        r"and layer 'wide(\.0)?' is the first whose output differs, though its input is right"
    )
    with pytest.raises(ValueError, match=words), torch.no_grad():
        zaq_onnx.export(model, (images,), path)
    assert not path.exists()
    with torch.no_grad():
        zaq_onnx.export(model, (images,), path, check=False)
    assert path.exists()


class Wrong:
    """A runtime that computes something else, where it may optimize."""

    def __init__(self) -> None:
        self.stock = checking.ort_session

    def __call__(self, model: Any, *, optimize: bool = True) -> Any:
        loaded = model if isinstance(model, ModelProto) else onnx.load(model)
        if optimize:
            loaded = enlarged(ModelProto.FromString(loaded.SerializeToString()))
        return self.stock(loaded, optimize=optimize)


@pytest.mark.slow
def test_a_runtime_that_is_wrong_and_one_that_saturates(
    pt2e_case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path, images = pt2e_case.model, tmp_path / "model.onnx", pt2e_case.images
    monkeypatch.setattr(checking, "ort_session", Wrong())
    monkeypatch.setattr(checking, "saturates", lambda runtime: False)
    words = "the file under ONNX Runtime does not compute .*'wide' is the first.*runs that part"
    with pytest.raises(ValueError, match=words):
        zaq_onnx.export(model, (images,), path, pack=False)
    monkeypatch.setattr(checking, "saturates", lambda runtime: True)
    monkeypatch.setattr(checking, "saturable", lambda graph: ["wide"])
    with pytest.warns(checking.Saturation, match=r"saturate to .*'wide' is the first"):
        zaq_onnx.export(model, (images,), path, pack=False)
    assert path.exists()
