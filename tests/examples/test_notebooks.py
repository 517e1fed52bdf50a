"""The notebooks run from top to bottom, and what they show is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


def content_of(name: str) -> dict[str, Any]:
    return json.loads((EXAMPLES / name).read_text(encoding="utf-8"))


def run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the code cells leave, run as Jupyter runs them, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(content_of(name)["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}[{number}]", "exec"), names)
    return names


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_without_outputs(name: str) -> None:
    notebook = content_of(name)
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert not cell.get("outputs")
        assert not any(line.startswith(("%", "!")) for line in cell["source"]), "plain Python"


@pytest.mark.slow
def test_a_float_model_becomes_an_onnx_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run("ptq_to_onnx.ipynb", tmp_path, monkeypatch)
    assert names["report"].ok
    assert names["accuracy"](names["run"]) == pytest.approx(
        names["accuracy"](names["model"]), abs=1.5
    )
    assert (tmp_path / "digits.onnx").stat().st_size < 4 * 76_000


@pytest.mark.slow
def test_training_without_data_mends_two_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run("data_free_qat.ipynb", tmp_path, monkeypatch)
    assert names["trained"] >= names["calibrated"] + 3
    assert names["trained"] >= 97


def test_both_notebooks_are_run() -> None:
    assert NOTEBOOKS == ["data_free_qat.ipynb", "ptq_to_onnx.ipynb"]
