"""`--export pte`: a file for a phone beside the tool's own, measured on the file."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from zoo_jobs import do

from zaq_plugin import archive
from zaq_timm.zoo.exporting import lines
from zaq_timm.zoo.settings import Settings

pytest.importorskip("timm", reason="transforms are timm's")
WITHOUT = "executorch is not installed: pip install 'zaq_plugin[executorch]'"


def test_a_file_for_a_device_wants_its_host() -> None:
    assert Settings(export="onnx,pte").export_kinds == ("onnx", "pte")
    assert Settings(export="onnx,pte").wanted_host == "executorch"
    assert Settings(export="onnx,pte", host="pt2e").wanted_host == "pt2e"
    assert Settings(export="onnx").wanted_host == "auto"
    assert Settings().export_kinds == ()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("executorch") is None, reason=WITHOUT)
def test_several_files_of_one_model(tmp_path: Path) -> None:
    row = do(tmp_path, strategy="pwlq+gptq", weights="pwlq4", export="onnx,pte")
    assert row["host"] == "executorch"
    onnx, pte = row["files"]
    assert (onnx["file"], pte["file"]) == ("model.onnx", "model.pte")
    assert row["exported"]["file"] == "model.onnx"
    for file in row["files"]:
        path = tmp_path / file["file"]
        assert file["bytes"] == path.stat().st_size
        with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
            z.write(path)
            assert abs(z.infolist()[0].compress_size - file["zipped_bytes"]) < 20
        archive.pack(path, tmp_path / "model.zaq")
        assert (tmp_path / "model.zaq").stat().st_size == file["archive_bytes"]
        assert file["archive_bytes"] < file["zipped_bytes"]
        assert file["agreement"] == pytest.approx(row["agreement"], abs=15)
        assert file["float_layers"] == 0
        assert file["ms"] > 0
    assert pte["integer_layers"] == row["quantized"]
    assert pte["float_bytes"] > pte["bytes"] * 0.9
    assert {"stock_bytes", "stock_ms", "float_ms", "stock_zipped_bytes"} <= set(pte)
    first, second = lines([{**row, "key": "net"}])
    assert first.startswith("net: model.onnx ")
    assert f", packed {onnx['archive_bytes'] / 1000:,.1f}" in first
    assert "(float " in second
    assert "the file agrees with the float model on" in second
