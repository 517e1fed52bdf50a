"""`zaq-quantize run` and `report` as a user meets them."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zaq_timm import cli
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.models import made_by

HERE = Path(__file__).parent
SMALL = [
    "--input-size",
    "3x16x16",
    "--batch",
    "8",
    "--calibration-images",
    "8",
    "--test-images",
    "8",
    "--distill-steps",
    "2",
]


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong call prints."""
    try:
        code = cli.main(list(words))
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    return err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["resnet81"], "timm has no model 'resnet81'. Did you mean"),
        ([], "no model to quantize: name one ('resnet18')"),
        (["resnet18", "--weights", "int4"], "weights must be pwlq2 to pwlq6"),
        (["resnet18", "--jobs", "two"], "argument --jobs: expected a whole number"),
        (["resnet18", "--settings", "none.toml"], "settings: there is no file none.toml."),
        (
            ["mine.pt"],
            "mine.pt is a file of weights; say which model it belongs to: --model NAME "
            "--checkpoint mine.pt, where NAME is",
        ),
        (["mine.safetensors"], "--model NAME --checkpoint mine.safetensors, where NAME is"),
        (["made.onnx"], "made.onnx is a file, and a model is wanted: a timm name"),
        (["zoo.yaml"], "settings are read by --settings FILE; name a model in it"),
        (["net.py"], "net.py is a module; name the function in it that returns the model: net"),
        (["net.py:make"], "'net.py:make': there is no file net.py."),
        (["nobodys_net:make"], "there is no module 'nobodys_net' in "),
        (["m:f", "--checkpoint", "mine.pt"], "Type --model m:f --checkpoint mine.pt."),
        (
            ["resnet18", "--stratgy", "x"],
            "run: error: unrecognized arguments: --stratgy x. Did you mean --strategy? (try: zaq-",
        ),
        (["--checkpoint", "none.pt", "--model", "resnet18"], "none.pt does not exist"),
        (["resnet18", "--eval"], "argument --eval: expected one argument"),
        (["resnet18", "--hots", "fx"], "unrecognized arguments: --hots"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    message = fails(capsys, "run", *words)
    assert text in message
    assert len(message.splitlines()) == 1
    assert "Traceback" not in message


def test_a_wrong_path_of_images_makes_no_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Else the corrected call would find a folder with other settings in it."""
    out, images, npz = tmp_path / "zoo", tmp_path / "images", tmp_path / "labels.npz"
    images.mkdir()
    np.savez(npz, labels=np.zeros(2, int))
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    for path, text in (
        (tmp_path / "imagse", "does not exist; neither a folder of class folders nor an npz"),
        (images, "expected a folder for each class with images in it"),
        (npz, "must hold arrays 'images' (uint8) and 'labels' (whole numbers); it holds labels."),
        (tmp_path / "broken.npz", "broken.npz is no whole npz"),
        (Path(__file__), "is neither a folder of class folders nor an npz"),
    ):
        for more in ((), ("--dry-run",)):
            message = fails(
                capsys, "run", "test_resnet", "--eval", str(path), "--out", str(out), *more
            )
            assert text in message
            assert not out.exists()
    assert "is a file; name a folder" in fails(
        capsys, "run", "test_resnet", "--dry-run", "--out", __file__
    )


def test_a_report_of_nothing_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "holds no results of zaq-quantize run" in fails(capsys, "report", str(tmp_path))


def test_a_function_may_be_named_by_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_mynet.py").write_text("from torch import nn\nlast = nn.Linear(4, 2)\n")
    code = "from torch import nn\nfrom beside_mynet import last\n"
    code += "def make(): return nn.Sequential(last)\n"
    (tmp_path / "mynet.py").write_text(code)
    path = str(tmp_path / "mynet.py")
    assert cli.main(["run", f"{path}:make", "--dry-run", "--out", str(tmp_path / "zoo")]) == 0
    assert f"  {path}:make: to do" in capsys.readouterr().out
    monkeypatch.setattr("sys.path", list(sys.path))
    model = made_by(f"{path}:make")
    assert isinstance(model, torch.nn.Sequential)
    assert model[0].out_features == 2
    with pytest.raises(LeftOut, match=r"has no attribute 'mak'; did you mean make\?"):
        made_by(f"{path}:mak")
    (tmp_path / "broken.py").write_text("def make():\n    raise RuntimeError('boom')\n")
    with pytest.raises(LeftOut, match=r"failed \(RuntimeError: boom\); it is called without arg"):
        made_by(f"{tmp_path / 'broken.py'}:make")


def test_a_module_that_is_misspelt_is_told_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets.py").write_text("")
    assert "Did you mean 'mynets'?" in fails(capsys, "run", "mynet:make", "--dry-run")
    assert not (tmp_path / "zoo").exists()
    assert "mynets.py:FUNCTION" in fails(capsys, "run", "mynets", "--dry-run")


def test_the_plan_is_told_and_nothing_is_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "zoo"
    code = cli.main(["run", "test_resnet", "test_vit*", "--dry-run", "--out", str(out)])
    text = capsys.readouterr().out
    assert code == 0
    assert "  test_resnet: to do\n" in text
    assert "4b MAC/5b stored" in text
    assert not out.exists()


def test_help_tells_every_flag_within_a_hundred_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    for word in ("--budget", "--cluster", "--zero-shot", "results.jsonl", "examples"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "zaq_timm.cli", *words]


def go(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a module of models and a checkpoint of one of them."""
    place = tmp_path_factory.mktemp("user")
    (place / "mine.py").write_text((HERE / "zoo_own_models.py").read_text())
    code = compile((place / "mine.py").read_text(), "mine.py", "exec")
    names: dict = {"__name__": "mine"}
    exec(code, names)
    torch.manual_seed(4)
    save_file(names["tiny"]().state_dict(), place / "tiny.safetensors")
    return place


@pytest.mark.slow
def test_a_run_from_beginning_to_report(folder: Path) -> None:
    words = ["run", "mine:tiny", "mine:branching", *SMALL[2:], "--out", "zoo"]
    first = go(folder, *words)
    assert first.returncode == 3, first.stderr  # one model is left out
    lines = first.stderr.splitlines()
    assert len(lines) == 3  # no terminal: one line a model, one for the zoo
    assert re.match(r"mine-tiny-\w+: left out: it does not say what images it takes", lines[0])
    assert re.match(
        r"mine-branching-\w+: left out: pt2e: ValueError: torch.export cannot", lines[1]
    )
    again = go(folder, *words, "--input-size", "3x16x16")
    assert again.returncode == 2
    assert 'input_size: "" there, "3x16x16" now' in again.stderr

    words = ["run", "mine:tiny", *SMALL, "--sensitivity", "--out", "small", "--json"]
    done = go(folder, *words, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (row,) = map(json.loads, done.stdout.splitlines())
    assert (row["status"], row["quantized"], row["layers"]) == ("done", 3, 3)
    (line,) = (folder / "small" / "results.jsonl").read_text().splitlines()
    assert json.loads(line) == row
    assert go(folder, *words).stdout == ""  # nothing left to do

    (told,) = row["warnings"]
    assert "mean and std: ImageNet's is taken" in told
    shown = go(folder, *words[:-1], "--quiet").stdout  # the same run, as a table
    assert f"Note: {row['key']}: {told}" in shown

    process = go(folder, "report", "small")
    assert process.stdout.split() == ["small/report.html", "small/report.csv"]
    (record,) = csv.DictReader((folder / "small" / "report.csv").open())
    assert int(record["size_bytes"]) == row["size_bytes"]
    page = (folder / "small" / "report.html").read_text()
    assert f'id="m-{row["key"]}"' in page
    assert "Which layers mind" in page


@pytest.mark.slow
def test_a_checkpoint_with_its_model_and_a_settings_file(folder: Path) -> None:
    values = dict(zip((w[2:] for w in SMALL[::2]), SMALL[1::2], strict=True))
    text = "".join(f"{k} = {v if v.isdigit() else json.dumps(v)}\n" for k, v in values.items())
    (folder / "zoo.toml").write_text(
        text + 'model = "mine:tiny"\ncheckpoint = "tiny.safetensors"\nout = "kept"\n'
    )
    done = go(folder, "run", "--settings", "zoo.toml")
    assert done.returncode == 0, done.stderr
    assert "mine-tiny@tiny-" in done.stdout
    row = json.loads((folder / "kept" / "results.jsonl").read_text())
    assert row["weights_from"] == "checkpoint tiny.safetensors"


@pytest.mark.slow
def test_a_terminal_gets_bars(folder: Path) -> None:
    """One for the zoo and one for the running model."""
    parent, child = pty.openpty()
    words = command("run", "mine:tiny", *SMALL, "--out", "bars")
    process = subprocess.Popen(
        words,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=child,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(child)
    output = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            part = os.read(parent, 1 << 16)
        except OSError:
            break
        if not part:
            break
        output += part
    assert process.wait(timeout=30) == 0
    os.close(parent)
    text = output.decode()
    assert "zoo" in text
    assert "mine-tiny-" in text
    assert "0/1" in text
    assert "1/1" in text or "1 of 1 in all" in text
    assert any(stage in text for stage in ("starting", "distilling", "quantizing"))
