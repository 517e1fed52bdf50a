"""`--strategy`: a published method in the place of a host, through the whole job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo_jobs import SMALL, do

from zaq_plugin.strategies import Request, apply
from zaq_timm.cli import main
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.images import make_images
from zaq_timm.zoo.models import load
from zaq_timm.zoo.references import Reference
from zaq_timm.zoo.settings import Settings

pytest.importorskip("timm", reason="transforms are timm's")


def test_a_row_tells_what_the_strategy_made(tmp_path: Path) -> None:
    row = do(tmp_path, strategy="omse+bias-correction", weights="uniform4", activations=4)
    assert (row["host"], row["mac_bits"], row["stored_bits"]) == ("simulated", 4, 4)
    assert row["notes"][0] == "strategy omse+bias-correction, ranges from synthetic images"
    settings = Settings(**SMALL)
    loaded = load(Reference("zoo_own_models:tiny"), settings)
    images = make_images(loaded.model, loaded.inputs, settings, 8, lambda *_: None)
    request = Request(
        4,
        4,
        levels="uniform",
        example_inputs=(images.calibration[:1],),
        mean=loaded.inputs.mean,
        std=loaded.inputs.std,
        depthwise="int8",
        synthetic=images.calibration,
        batch_size=8,
    )
    student = apply("omse+bias-correction", loaded.model, request).model
    with torch.no_grad():
        signal, answer = loaded.model(images.test).double(), student(images.test).double()
    noise = 10 * torch.log10(signal.square().sum() / (signal - answer).square().sum())
    assert row["output_sqnr_db"] == pytest.approx(float(noise), abs=0.01)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [s["status"] for s in manifest["stages"]] == ["done"] * 4


def test_a_strategy_keeps_pwlq_levels_where_weights_say_so(tmp_path: Path) -> None:
    row = do(tmp_path, strategy="dfq", weights="pwlq3")
    assert (row["mac_bits"], row["stored_bits"]) == (3, 4)
    assert row["notes"][0] == "strategy dfq, without images"


def test_a_strategy_that_a_model_cannot_take_leaves_it_out(tmp_path: Path) -> None:
    with pytest.raises(LeftOut, match="strategy gdfq: Branching has no BatchNorm|strategy gdfq: "):
        do(tmp_path, "zoo_own_models:branching", input_size="3x8x8", strategy="gdfq")


@pytest.mark.slow
def test_what_a_strategy_made_is_exported_as_integers(tmp_path: Path) -> None:
    zaq_onnx = pytest.importorskip("zaq_onnx", reason="the file is ONNX")
    import onnxruntime

    row = do(tmp_path, strategy="pwlq+gptq", weights="pwlq3", export="onnx")
    file = row["exported"]
    assert (file["file"], file["integer_layers"], file["float_layers"]) == ("model.onnx", 3, 0)
    assert "tensors that were float in the model have 8-bit ranges" in file["remarks"][-1]
    settings = Settings(**SMALL, strategy="pwlq+gptq", weights="pwlq3")
    loaded = load(Reference("zoo_own_models:tiny"), settings)
    images = make_images(loaded.model, loaded.inputs, settings, 8, lambda *_: None)
    session = onnxruntime.InferenceSession(
        zaq_onnx.load(tmp_path / "model.onnx").SerializeToString()
    )
    name = session.get_inputs()[0].name
    answer = torch.from_numpy(session.run(None, {name: images.test.numpy()})[0])
    with torch.no_grad():
        signal = loaded.model(images.test)
    noise = 10 * torch.log10(signal.square().sum() / (signal - answer).square().sum())
    assert row["output_sqnr_db"] == pytest.approx(float(noise), abs=3.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strategy": "dqf"}, r"no strategy 'dqf'. Did you mean 'dfq'\?"),
        ({"strategy": "ft"}, "strategy 'ft' needs real images, and a run makes its own"),
        ({"strategy": "rq+real"}, "needs real images"),
        (
            {"strategy": "rq", "export": "pt2", "host": "simulated"},
            "export=pt2 needs a host's converted model, .* use .*host=pt2e, or export=onnx",
        ),
        ({"strategy": "lbq", "export": "onnx"}, "second-tensor puts weights together"),
        ({"strategy": "aciq", "export": "onnx"}, "bit-allocation puts weights together"),
        ({"strategy": "lbq", "host": "fx"}, "second-tensor puts weights together"),
        ({"strategy": "aciq", "export": "pt2"}, "bit-allocation puts weights together"),
        ({"strategy": "rq", "zero_shot": "fast"}, "strategy does not go with zero_shot"),
        ({"strategy": "zeroq-mp", "budget": "4bits"}, "zeroq-mp' chooses widths itself, and so"),
        ({"strategy": "equalise"}, "does not say which grid weights get"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**values)


def test_the_command_line_and_the_settings_file_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("yaml", reason="YAML settings need PyYAML")
    file = tmp_path / "zoo.toml"
    file.write_text('models = ["zoo_own_models:tiny"]\nstrategy = "lbq"\nweights = "uniform4"\n')
    out = ["--out", str(tmp_path / "zoo"), "--dry-run"]
    assert main(["run", "--settings", str(file), *out]) == 0
    assert "strategy     lbq" in capsys.readouterr().out
    yaml = tmp_path / "zoo.yaml"
    yaml.write_text("models: [zoo_own_models:tiny]\nstrategy: dfq+adaround\n")
    assert main(["run", "--settings", str(yaml), *out]) == 0
    assert "strategy     dfq+adaround" in capsys.readouterr().out
    for more, host in (
        ([], "simulated"),
        (["--export", "pte", "--activations", "8"], "executorch"),
        (["--host", "fx"], "fx"),
        (["--export", "pt2"], "PT2E, or FX where that fails"),
    ):
        assert main(["run", "--settings", str(yaml), *more, *out]) == 0
        assert f"host         {host}\n" in capsys.readouterr().out
    assert main(["run", "--settings", str(file), "--strategy", "aciqq", *out]) == 2
    assert "no strategy 'aciqq'. Did you mean 'aciq'?" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["fx", "pt2e"])
@pytest.mark.parametrize(
    "strategy", ["omse", "pwlq+gptq", pytest.param("adaround", marks=pytest.mark.slow)]
)
def test_a_strategy_in_a_host_is_converted_and_exported(
    tmp_path: Path, strategy: str, host: str
) -> None:
    pytest.importorskip("onnxruntime", reason="the file is run under ONNX Runtime")
    weights = "pwlq3" if strategy == "pwlq+gptq" else "uniform4"
    row = do(tmp_path, strategy=strategy, weights=weights, host=host, export="onnx")
    assert row["host"] == host
    assert row["exported"]["float_layers"] == 0
    assert row["exported"]["integer_layers"] == 3
    assert row["stored_bits"] == 4
    simulated = do(tmp_path, strategy=strategy, weights=weights)
    # A host has an 8-bit grid for the answer, too: 8 bits are about 30 dB of noise here.
    assert row["output_sqnr_db"] > min(simulated["output_sqnr_db"], 30) - 4


@pytest.mark.slow
def test_a_strategys_eight_bits_fit_int8_kernels(tmp_path: Path) -> None:
    row = do(tmp_path, strategy="omse", weights="uniform8", export="onnx")
    assert row["exported"]["float_layers"] == 0
    assert row["stored_bits"] == 8


def test_a_strategy_keeps_to_a_budget(tmp_path: Path) -> None:
    row = do(tmp_path, strategy="omse+gptq", weights="uniform4", budget="5bits", host="pt2e")
    assert row["host"] == "pt2e"
    assert 4 < row["stored_bits"] <= 5
