"""The command as a user meets it: its words, its exit codes, its output."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import zaq_plugin
from zaq_timm import cli


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, "one clear line"
    return err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["demo", "--seed", "x"], "argument --seed: expected a whole number from 0 on, got 'x'"),
        (["demo", "--seed", "-1"], "argument --seed: expected"),
        (["demo", "--seed", str(2**63)], "argument --seed: expected a number below 2**63"),
        (["demo", "--out"], "argument --out: expected one argument"),
        (["demo", "--out", ""], "argument --out: expected a folder, got an empty name"),
        (["demo", "--colour"], "unrecognized arguments: --colour"),
        (["demo", "--export", "pte,apk"], "argument --export: expected pte, tflite, or"),
        (["dmeo"], "argument COMMAND: invalid choice: 'dmeo'"),
        ([], "the following arguments are required: COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    line = fails(capsys, *arguments)
    assert text in line
    assert "--help" in line


def test_an_output_folder_that_is_a_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "below"):
        assert f"{taken} is a file; name a folder" in fails(capsys, "demo", "--out", str(out))
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_is_printed_without_loading_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from zaq_timm import cli\n"
        f"try: cli.main({arguments})\nexcept SystemExit as end: assert end.code == 0\n"
        "print('rich.progress' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert text.startswith("usage: zaq-quantize")
    assert text.endswith("False\n")


QUICK = {
    "help": (["--help"], 0),
    "help of a command": (["run", "--help"], 0),
    "version": (["--version"], 0),
    "wrong argument": (["demo", "--seed", "x"], 2),
    "wrong setting": (["run", "resnet18", "--weights", "pwlq9"], 2),
    "plan": (["run", "resnet18", "vit_tiny*", "--dry-run"], 0),
    "plan of a checkpoint": (["run", "--model", "resnet18", "--checkpoint", __file__,
                              "--dry-run"], 0),
}  # fmt: skip


@pytest.mark.parametrize("case", QUICK)
def test_what_needs_no_model_loads_neither_torch_nor_timm(case: str, tmp_path: Path) -> None:
    arguments, status = QUICK[case]
    code = (
        "import sys, time; from zaq_timm import cli\n"
        f"try: ended = cli.main({arguments})\nexcept SystemExit as end: ended = end.code\n"
        "loaded = {'torch', 'timm', 'numpy', 'zaq_plugin'} & sys.modules.keys()\n"
        "print(ended, sorted(loaded), time.process_time(), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    seconds = []
    for _ in range(3):
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
        line = done.stderr.splitlines()[-1]
        assert line.startswith(f"{status} [] ")
        seconds.append(float(line.split()[-1]))
    assert min(seconds) <= 0.5


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["rnu", "resnet18"], "invalid choice: 'rnu' "),
        (["rnu", "resnet18"], ". Did you mean run? (try: zaq-quantize --help)"),
        (["demo", "--hots", "fx"], "demo: error: unrecognized arguments: --hots fx. Did you mean"),
        (["demo", "--host", "pt2"], ". Did you mean pt2e? (try: zaq-quantize demo --help)"),
        (["verify", __file__, "--qqq"], "verify: error: unrecognized arguments: --qqq (try: zaq-"),
    ],
)
def test_what_is_misspelt_is_named(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("ending", "module"), [("pte", "zaq_executorch"), ("tflite", "zaq_litert")]
)
def test_files_of_devices_are_verified_elsewhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, ending: str, module: str
) -> None:
    path = tmp_path / f"model.{ending}"
    path.write_bytes(b"x")
    assert cli.main(["verify", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"model.{ending} is no ONNX file. A .{ending} file is verified against its model" in err
    assert f"{module}.verify(" in err


def test_help_explains_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    text = capsys.readouterr().out
    for word in ("digits.onnx", "report.html", "manifest.json", "rest.safetensors", "model.pte"):
        assert word in text
    assert "A file is larger than the table's size, which counts weights alone" in text
    for word in ("MAC bits", "stored bits", "SQNR", "agreement", "--json", "examples", "held-out"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"zaq-quantize {zaq_plugin.__version__}\n"


def test_the_command_is_installed() -> None:
    (entry,) = (e for e in metadata.entry_points(name="zaq-quantize") if e.group)
    assert entry.load() is cli.main


def test_missing_images_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == (
        "zaq-quantize demo: error: the handwritten digits come with scikit-learn, which is not "
        "installed. Install it with: pip install 'zaq_plugin[timm]'."
    )


@pytest.mark.slow
def test_the_demo_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zaq_timm.cli", "demo", "--json", "--seed", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    content = json.loads(done.stdout)
    assert content["seed"] == 2
    assert {Path(name).name for name in content["files"]} == {
        "report.html",
        "digits.onnx",
        "manifest.json",
        "quantized.safetensors",
        "rest.safetensors",
    }
    assert all((tmp_path / name).is_file() for name in content["files"])
    assert len(done.stderr.splitlines()) == 1  # no terminal: one line in place of the bar
    plain = subprocess.run(
        [*command[:4], "--seed", "2"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    for word in ("FP32", "PWLQ", "uniform", "SQNR", "Agree", "zaq-demo/report.html"):
        assert word in plain
    onnx = (tmp_path / "zaq-demo" / "digits.onnx").stat().st_size
    assert re.search(rf"zaq-demo/digits.onnx +{onnx / 1000:.1f} kB\n", plain)
    assert "A file is larger than the table's size" in plain
