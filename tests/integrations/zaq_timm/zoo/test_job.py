"""Whole models through whole jobs: what the row says is what the model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo_jobs import SMALL, do

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, quantize
from zaq_timm.zoo import exporting
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.models import load
from zaq_timm.zoo.references import Reference
from zaq_timm.zoo.settings import Settings

pytest.importorskip("timm", reason="transforms are timm's")


def details(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "details.json").read_text())


@pytest.mark.parametrize("host", ["auto", "fx"])
def test_a_row_tells_sizes_and_bits_as_they_are(tmp_path: Path, host: str) -> None:
    row = do(tmp_path, host=host)
    assert row["host"] == ("pt2e" if host == "auto" else host)
    assert (row["layers"], row["quantized"]) == (3, 3)
    (note,) = row["notes"]
    assert note.startswith("the model does not say its images' mean and std: ImageNet's is taken")
    assert (row["mac_bits"], row["stored_bits"], row["activation_bits"]) == (4, 5, 8)
    model = load(Reference("zoo_own_models:tiny"), Settings(**SMALL)).model
    folded = fold_batch_norm(model)
    stored = sum(
        quantize(p.detach(), PWLQSpec(bits=4)).stored_bytes
        for p in folded.parameters()
        if p.dim() > 1
    )
    biases = sum(4 * p.numel() for p in folded.parameters() if p.dim() == 1)
    assert row["size_bytes"] == stored + biases
    assert row["float_bytes"] == 4 * sum(p.numel() for p in model.parameters())
    assert row["divergence"] < 0.1
    assert row["agreement"] >= 50
    assert "top1" not in row
    content = details(tmp_path)
    assert [layer["name"] for layer in content["layers"]] == ["0", "3", "8"]
    for one in content["levels"]:
        assert len(one["levels"]) == len(one["counts"]) == 2**5 - 1
        weights = dict(folded.named_modules())[one["layer"]].weight
        assert sum(one["counts"]) == weights[0].numel()
    assert (tmp_path / "images.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [s["status"] for s in manifest["stages"]] == ["done"] * 4


def test_a_seed_fixes_everything(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    one, same = (do(tmp_path / n, sensitivity=True, seed=3) for n in "ab")
    other = do(tmp_path / "c", sensitivity=True, seed=4)
    assert one == same
    assert details(tmp_path / "a") == details(tmp_path / "b")
    assert (tmp_path / "a" / "images.png").read_bytes() == (
        tmp_path / "b" / "images.png"
    ).read_bytes()
    assert one["divergence"] != other["divergence"]


def test_images_with_classes_measure_both_models(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    loaded = load(Reference("zoo_own_models:tiny"), Settings(**SMALL))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.inputs.mean, loaded.inputs.std))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    labels = loaded.model(images).argmax(1)
    labels[:5] = (labels[:5] + 1) % 5
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels.numpy())
    row = do(tmp_path, eval=str(tmp_path / "a.npz"))
    assert (row["float_top1"], row["eval_images"]) == (75.0, 20)
    assert abs(row["top1"] - 75.0) <= 15
    assert row["eval_agreement"] >= 85


@pytest.mark.parametrize("budget", ["4.5bits", "2kB"])
def test_a_budget_is_kept_and_used(tmp_path: Path, budget: str) -> None:
    (tmp_path / "plain").mkdir()
    plain = do(tmp_path / "plain", weights="pwlq2")
    row = do(tmp_path, budget=budget)
    if budget == "4.5bits":
        assert 3 < row["stored_bits"] <= 4.5
        (chosen,) = (p for p in details(tmp_path)["frontier"] if p["chosen"])
        assert chosen["stored_bits"] == pytest.approx(row["stored_bits"])
    else:
        assert 0.6 * 2000 < row["size_bytes"] <= 2000
    assert row["sqnr_db"] > plain["sqnr_db"]
    widths = {layer["stored_bits"] for layer in details(tmp_path)["layers"]}
    assert widths <= {3, 4, 5, 6, 7, 8}
    bits = {s["layer"]: s["stored_bits"] for s in details(tmp_path)["sensitivities"]}
    assert bits == {layer["name"]: layer["stored_bits"] for layer in details(tmp_path)["layers"]}


def test_a_budget_that_nothing_fits_in_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even the narrowest widths take"):
        do(tmp_path, budget="2.5bits")


def test_what_nobody_can_export_is_left_out_with_both_reasons(tmp_path: Path) -> None:
    with pytest.raises(LeftOut) as caught:
        do(tmp_path, "zoo_own_models:branching", input_size="3x8x8")
    assert "pt2e: ValueError: torch.export cannot follow it" in str(caught.value)
    assert "fx: ValueError: torch.fx cannot trace Branching" in str(caught.value)


def test_the_exported_program_is_the_converted_model(tmp_path: Path) -> None:
    row = do(tmp_path, export="pt2")
    assert row["exported"] == {
        "file": "model.pt2",
        "bytes": (tmp_path / "model.pt2").stat().st_size,
    }
    again = torch.export.load(tmp_path / "model.pt2").module()
    model = load(Reference("zoo_own_models:tiny"), Settings(**SMALL)).model
    images = torch.randn(5, 3, 16, 16)
    assert float((again(images) - model(images)).norm() / model(images).norm()) < 0.3
    codes = [b for b in again.state_dict().values() if b.dtype == torch.int8]
    assert sorted(c.numel() for c in codes) == [80, 216, 1152]


def test_a_model_that_cannot_be_exported_keeps_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> dict[str, Any]:
        raise ValueError("no such\noperator")

    monkeypatch.setitem(exporting.EXPORTERS, "pt2", broken)
    row = do(tmp_path, export="pt2")
    assert (row["status"], row["quantized"]) == ("failed", 3)
    assert row["reason"] == "quantized, but not exported: no such operator"


@pytest.mark.slow
def test_zero_shot_training_hands_back_no_worse_a_model(tmp_path: Path) -> None:
    row = do(tmp_path, zero_shot="fast", weights="uniform2", activations=4, test_images=32)
    before, after = row["zero_shot_divergence"]
    assert after <= before
    assert row["zero_shot_kept"]
    assert details(tmp_path)["curve"]
    assert (row["mac_bits"], row["stored_bits"]) == (2, 2)


@pytest.mark.slow
def test_nncf_on_request(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs the extra nncf")
    pytest.importorskip("zaq_nncf", reason="needs the integration with NNCF")
    row = do(tmp_path, host="nncf")
    assert (row["host"], row["layers"], row["quantized"]) == ("nncf", 3, 3)
    assert (row["mac_bits"], row["stored_bits"]) == (4, 5)
    assert row["divergence"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("host", ["pt2e", "fx"])
def test_onnx_is_written_and_run(tmp_path: Path, host: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("zaq_onnx", reason="needs the integration with ONNX")
    row = do(tmp_path, export="onnx", host=host)
    file = row["exported"]
    assert file["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert (file["integer_layers"], file["float_layers"]) == (3, 0)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = torch.randn(5, 3, 16, 16)
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = load(Reference("zoo_own_models:tiny"), Settings(**SMALL)).model(images).numpy()
    assert np.linalg.norm(output - expected) < 0.3 * np.linalg.norm(expected)
