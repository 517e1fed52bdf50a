"""`zaq-quantize pack` and `unpack` as a user meets them."""

from pathlib import Path

import numpy as np
import pytest
from onnx_weights import model_of
from pwlq_integers import pwlq

from zaq_timm import cli


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(model_of(pwlq((16, 512)), 0).SerializeToString())
    return path


def test_there_and_back(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = file.read_bytes()
    assert cli.main(["pack", str(file)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{file}.zaq: ")
    assert f"of a file of {len(data) / 1000:,.1f} kB" in text
    assert "8,192 weights as PWLQ's codes, 0 as bytes" in text
    file.unlink()
    assert cli.main(["unpack", f"{file}.zaq"]) == 0
    assert capsys.readouterr().out == f"{file}: {len(data) / 1000:,.1f} kB, as packed\n"
    assert file.read_bytes() == data
    other = file.with_name("other")
    assert cli.main(["unpack", f"{file}.zaq", str(other)]) == 0
    assert other.read_bytes() == data
    other.write_bytes(b"mine")
    assert cli.main(["unpack", f"{file}.zaq", str(other)]) == 1
    text = capsys.readouterr().err
    assert f"{other} is there already, and is not what {file}.zaq holds" in text
    assert "or replace it with --force" in text
    assert other.read_bytes() == b"mine"
    assert cli.main(["unpack", f"{file}.zaq", str(other), "--force"]) == 0
    assert other.read_bytes() == data


def test_a_name_without_a_suffix_gets_the_files(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, small = file.read_bytes(), file.with_name("small.zaq")
    assert cli.main(["pack", str(file), str(small)]) == 0
    capsys.readouterr()
    assert cli.main(["unpack", str(small)]) == 0
    assert capsys.readouterr().out.startswith(f"{small.with_suffix(file.suffix)}: ")
    assert small.with_suffix(file.suffix).read_bytes() == data


@pytest.mark.parametrize("verb", ["pack", "unpack"])
def test_what_cannot_be_done_is_one_line_and_exit_code_1(
    verb: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file.with_name("broken.onnx.zaq" if verb == "unpack" else "broken.onnx")
    path.write_bytes(np.arange(200, dtype=np.uint8).tobytes())
    assert cli.main([verb, str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"zaq-quantize {verb}: error: {path}: ")
    assert error.count("\n") == 1
    assert sorted(file.parent.iterdir()) == sorted([file, path])
    with pytest.raises(SystemExit):
        cli.main([verb, str(file.with_name("nowhere.onnx"))])
