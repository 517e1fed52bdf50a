"""NNCF's compiled kernels: needed seldom, announced, patient, and explained where they fail."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor, nn

import zaq_nncf
from zaq_nncf import _compat, extension


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str | None]]:
    """As before the first use: nothing compiled; loading takes down the time limit it sees."""
    seen: list[str | None] = []
    monkeypatch.setattr(extension, "extension_is_loaded", lambda: bool(seen))
    monkeypatch.setattr(extension, "extension_folder", lambda: tmp_path)
    monkeypatch.setattr(extension, "fell_back", lambda: False)
    monkeypatch.setattr(
        extension, "load_extension", lambda: seen.append(os.environ.get(_compat.TIMEOUT_VARIABLE))
    )
    yield seen
    assert os.environ.get(_compat.TIMEOUT_VARIABLE) is None


def test_compiling_is_announced_and_given_time(
    not_loaded: list[str | None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    zaq_nncf.compile_extension()
    assert not_loaded == [str(extension.SECONDS)]
    assert extension.SECONDS >= 600  # NNCF gives up after 60
    text = capsys.readouterr().err
    assert "compiling NNCF's CPU kernels, once" in text
    assert str(tmp_path) in text
    zaq_nncf.compile_extension()
    assert len(not_loaded) == 1
    assert capsys.readouterr().err == ""


def test_compiled_before_it_is_only_loaded(
    not_loaded: list[str | None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "quantized_functions_cpu.so").touch()
    zaq_nncf.compile_extension()
    assert len(not_loaded) == 1
    assert capsys.readouterr().err == ""


def test_a_time_limit_that_the_user_set_stays(
    not_loaded: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(_compat.TIMEOUT_VARIABLE, "7")
        zaq_nncf.compile_extension()
        assert os.environ[_compat.TIMEOUT_VARIABLE] == "7"
    assert not_loaded == ["7"]


def test_our_quantizers_do_not_need_it(
    not_loaded: list[str | None], net: nn.Module, images: Tensor
) -> None:
    student = zaq_nncf.quantize(net, [images])
    student(images).sum().backward()
    zaq_nncf.strip(student)
    assert not_loaded == []


def test_layers_left_to_nncf_do(
    not_loaded: list[str | None], net: nn.Module, images: Tensor
) -> None:
    zaq_nncf.quantize(net, [images], overrides={"fc": None})
    assert len(not_loaded) == 1


SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import torch, zaq_nncf
zaq_nncf.compile_extension()
from nncf.torch.quantization.quantize_functions import symmetric_quantize
x = torch.tensor([0.3, -2.0, 0.7])
print(symmetric_quantize(x, 255, -127, 127, torch.tensor([1.27]), 0.0).tolist())
"""


@pytest.mark.slow
def test_without_a_compiler_it_says_what_is_missing_and_computes_the_same(tmp_path: Path) -> None:
    environment = {
        "PATH": str(tmp_path),
        "HOME": str(tmp_path),
        "TORCH_EXTENSIONS_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "could not be compiled: g++ and ninja not found" in done.stderr
    assert "Install a C++ compiler and ninja" in done.stderr
    values = [float(v) for v in done.stdout.strip().splitlines()[-1].strip("[]").split(",")]
    assert values == pytest.approx([0.3, -1.27, 0.7], abs=1e-6)
