"""`zaq-quantize compare`: worst layers first, against figures worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import zaq_onnx
from zaq_plugin import PWLQSpec, calibrate, fold_batch_norm, quantize, save_quantized, simulate
from zaq_plugin.report import Audit, LayerRecord, Manifest
from zaq_timm import cli
from zaq_timm.looking.contents import Contents
from zaq_timm.looking.differences import compare

SIZE = "1x16x16"


def record(name: str, noise: float | None, reason: str | None = None) -> LayerRecord:
    if noise is None:
        return LayerRecord(name, "Conv2d", 10, False, reason)
    return LayerRecord(name, "Conv2d", 10, True, None, "x", 4, 5, 9, noise)


def test_weights_are_sorted_by_noise_and_strangers_come_last() -> None:
    one = {"a": torch.ones(4, 4), "b": torch.ones(4, 4), "c": torch.ones(2, 3), "d": torch.ones(2)}
    other = {"a": torch.full((4, 4), 0.9), "b": torch.full((4, 4), 0.5), "c": torch.ones(2, 3)}
    differences = compare(Contents("1", one), Contents("2", {**other, "e": torch.ones(1, 1)}))
    assert [d.layer for d in differences] == ["b", "a", "c", "d", "e"]
    assert differences[0].sqnr_db == pytest.approx(20 * math.log10(1 / 0.5))
    assert differences[1].sqnr_db == pytest.approx(20, abs=1e-4)  # a tenth of the amplitude
    assert differences[2].sqnr_db == math.inf
    assert [d.note for d in differences[3:]] == ["only in the first", "only in the second"]


def test_a_matrix_of_onnx_may_lie_on_its_side() -> None:
    w = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    (difference,) = compare(Contents("1", {"a": w}), Contents("2", {"a": w.T}))
    assert difference.sqnr_db == math.inf
    (difference,) = compare(
        Contents("1", {"a": torch.ones(2, 6)}), Contents("2", {"a": torch.ones(2, 3, 2, 1)})
    )
    assert difference.note == "other shape"


def test_records_are_sorted_by_the_worse_of_both() -> None:
    first = Audit([record("a", 30.0), record("b", 20.0), record("c", None, "too small")])
    second = Audit([record("a", 10.0), record("b", 25.0), record("c", None, "too small")])
    differences = compare(Contents("1", audits={"m": first}), Contents("2", audits={"m": second}))
    assert [(d.layer, d.before, d.after, d.sqnr_db) for d in differences] == [
        ("a", 30.0, 10.0, 10.0),
        ("b", 20.0, 25.0, 20.0),
        ("c", None, None, None),
    ]
    assert differences[2].note == "too small"


def test_what_has_nothing_in_common_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match="no layer in common that can be compared: a in the one"):
        compare(Contents("1", {"a": torch.ones(2, 2)}), Contents("2", {"b": torch.ones(2, 2)}))
    with pytest.raises(ValueError, match="1 holds results and 2 weights"):
        compare(
            Contents("1", audits={"m": Audit([record("a", 1.0)])}),
            Contents("2", {"a": torch.ones(2, 2)}),
        )


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 14 * 14, 5),
    ).eval()  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "compared_net.py").write_text(
        "import torch\nfrom torch import nn\ndef tiny():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),"
        " nn.Flatten(), nn.Linear(8 * 14 * 14, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_model_and_its_files_differ_by_the_noise_of_quantization(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.randn(4, 1, 16, 16)
    folded = fold_batch_norm(net(), (x,))
    student = simulate(folded, PWLQSpec(bits=4))
    calibrate(student, [x])
    zaq_onnx.export(student, (x,), "tiny.onnx")
    tensors = {n: quantize(folded.get_submodule(n).weight.detach(), PWLQSpec(bits=4))
               for n in ("0", "4")}  # fmt: skip
    save_quantized("tiny.safetensors", tensors)
    expected = {name: tensor.sqnr_db for name, tensor in tensors.items()}

    for file in ("tiny.onnx", "tiny.safetensors"):
        words = ["compare", "compared_net:tiny", file, "--input-size", SIZE]
        assert cli.main([*words, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert {d["layer"]: d["sqnr_db"] for d in rows} == pytest.approx(expected, abs=1e-3)
        assert [d["layer"] for d in rows] == sorted(expected, key=lambda name: expected[name])

    assert cli.main(["compare", "tiny.onnx", "tiny.safetensors", "--out", "page.html"]) == 0
    text = capsys.readouterr().out
    assert "SQNR of tiny.safetensors against tiny.onnx, dB" in text
    page = (here / "page.html").read_text(encoding="utf-8")
    assert "Layer by layer" in page
    assert "http" not in page.replace("http-equiv", "")
    assert cli.main(["compare", "tiny.onnx", "tiny.safetensors", "--top", "1"]) == 0
    assert "and 1 more" in capsys.readouterr().out


def test_a_checkpoint_is_compared_in_its_model(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its BatchNorm divides by a deviation of 2, the model's by 1: it has half the weights."""
    model = net()
    model[1].running_var.fill_(4.0)
    save_file(model.state_dict(), "mine.safetensors")
    words = ["compare", "mine.safetensors", "compared_net:tiny", "--input-size", SIZE, "--json"]
    assert cli.main([*words, "--model", "compared_net:tiny"]) == 0
    rows = {d["layer"]: d["sqnr_db"] for d in json.loads(capsys.readouterr().out)}
    mine, theirs = (1 / math.sqrt(var + 1e-5) for var in (4.0, 1.0))
    assert rows["0"] == pytest.approx(20 * math.log10(mine / (theirs - mine)), abs=1e-3)
    assert rows["4"] == "inf"
    assert cli.main(words) == 0  # as it is: the convolution's weight, not divided
    assert {d["layer"] for d in json.loads(capsys.readouterr().out)} == {"0", "4"}
    assert cli.main(["compare", "a.onnx", "b.onnx", "--model", "resnet18"]) == 2
    err = capsys.readouterr().err
    assert "--model resnet18 says whose weights a checkpoint has, and neither a.onnx nor" in err


def test_two_folders_of_results(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, noise in (("one", 30.0), ("two", 12.5)):
        manifest = Manifest.start("net")
        manifest.layers = Audit([record("a", noise), record("b", 40.0)])
        (here / name).mkdir()
        manifest.save(here / name / "manifest.json")
    assert cli.main(["compare", "one", "two"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "SQNR in one, dB" in lines[0]
    assert lines[1].split() == ["a", "10", "30.0", "12.5"]
    assert lines[2].split() == ["b", "10", "40.0", "40.0"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere/", "x.onnx"], "nowhere/ does not exist"),
        (["x.onnx", "y.onnx"], "x.onnx does not exist, or is no file"),
        (["empty", "empty"], "empty holds no results of zaq-quantize run"),
        (["w.safetensors", "resnet81"], "timm has no model 'resnet81'"),
    ],
)
def test_what_cannot_be_compared(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    (here / "empty").mkdir()
    save_file({"a.weight": torch.zeros(2, 2)}, here / "w.safetensors")
    assert cli.main(["compare", *words]) == 2
    assert text in capsys.readouterr().err
