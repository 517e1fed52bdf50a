"""The demo's file for ExecuTorch: written, run, and as small as it says."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from zaq_plugin import archive
from zaq_plugin.ptq import fold_batch_norm
from zaq_timm import cli
from zaq_timm.demo_files import write_device_file
from zaq_timm.digits import digits_model, load_digits_split


@pytest.mark.slow
@pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is not installed")
def test_the_network_on_a_device(tmp_path: Path) -> None:
    from zaq_executorch.reading import read

    split = load_digits_split()
    model = fold_batch_norm(digits_model(), (split.train_images[:1],))
    batches = list(split.train_images[:128].split(32))
    images, labels = split.test_images[:200], split.test_labels[:200]
    files, facts, text = write_device_file("pte", model, batches, images, labels, tmp_path)
    assert [path.name for path in files] == ["model.pte", "model.pte.zaq"]
    assert facts["bytes"] == files[0].stat().st_size
    assert facts["packed bytes"] == files[1].stat().st_size < facts["zipped bytes"]
    assert facts["integer layers"] == read(files[0]).integer_layers > 5
    floats = (model(images).argmax(1) == labels).double().mean().item()
    assert facts["top-1"] > 100 * floats - 4
    assert f"the file's top-1 is {facts['top-1']:.2f} %" in text
    data = files[0].read_bytes()
    assert archive.unpack(files[1]) == len(data)
    assert files[0].read_bytes() == data


def test_a_tool_that_is_missing_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(kind: str) -> None:
        raise ImportError(f"zaq_{kind} needs more; pip install 'zaq_plugin[{kind}]'")

    monkeypatch.setattr("zaq_timm.demo.tool_of", missing)
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--export", "tflite"]) == 1
    assert "zaq-quantize demo: error: zaq_tflite needs more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
