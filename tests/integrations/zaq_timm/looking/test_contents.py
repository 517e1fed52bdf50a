"""`zaq-quantize inspect`: what is predicted is what quantization gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import zaq_onnx
from zaq_plugin import PWLQSpec, calibrate, fold_batch_norm, quantize, simulate
from zaq_timm import cli
from zaq_timm.looking.predict import sketch, sketch_onnx, spec_at
from zaq_timm.looking.seconds import METHODS
from zaq_timm.zoo.references import Reference
from zaq_timm.zoo.settings import Settings

SIZE = "1x16x16"
MODEL = '''
import torch
from torch import nn

class Net(nn.Module):
    """A convolution, one with a weight of nobody's, a linear layer."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8 * 14 * 14, 5)
    def forward(self, x):
        return self.linear(torch.relu(self.bn(self.conv(x))).flatten(1))

def tiny():
    return Net()
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "inspected_net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def tiny(hosts: bool = False) -> object:
    return sketch(Reference("inspected_net:tiny"), Settings(input_size=SIZE), hosts)


def test_what_is_assumed_of_the_images_is_printed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inspect", "inspected_net:tiny", "--input-size", SIZE, "--no-hosts", "--no-seconds"]
    assert cli.main(words) == 0
    assert "\nNote: the model does not say its images' mean and std" in capsys.readouterr().out
    assert cli.main([*words, "--mean", "0", "--std", "1"]) == 0
    assert "Note:" not in capsys.readouterr().out


def test_layers_shapes_and_sizes_are_those_of_the_quantized_weights(here: Path) -> None:
    import inspected_net

    outline = tiny()
    assert [(layer.name, layer.shape) for layer in outline.layers] == [
        ("conv", (8, 1, 3, 3)),
        ("linear", (5, 1568)),
    ]
    folded = fold_batch_norm(inspected_net.tiny().eval(), (torch.zeros(2, 1, 16, 16),))
    for bits in (4, 5, 8):
        for layer in outline.layers:
            weight = folded.get_submodule(layer.name).weight.detach()
            assert layer.bytes[bits] == quantize(weight, spec_at(bits)).stored_bytes
            assert spec_at(bits).stored_bits == bits
    whole = sum(p.numel() for p in folded.parameters())
    assert outline.float_bytes == 4 * whole
    assert outline.other_bytes == 4 * (8 + 5)  # both biases: the folded one and the linear layer's
    assert outline.size(4) < outline.size(5) < outline.size(8) < outline.float_bytes


def test_the_command_tells_layers_and_sizes_and_hosts(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zaq_timm.looking.predict.host_names", lambda: ["fx", "simulated"])
    words = ["inspect", "inspected_net:tiny", "--input-size", SIZE]
    assert cli.main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["hosts"] == {"fx": {"takes": True, "layers": 2, "quantized": 2, "float": {}}}
    assert list(content["seconds"]) == list(METHODS)
    assert all(seconds > 0 for seconds in content["seconds"].values())
    assert cli.main([*words, "--no-hosts", "--no-seconds"]) == 0
    assert "seconds" not in capsys.readouterr().out
    assert cli.main([*words, "--no-hosts"]) == 0
    text = capsys.readouterr().out
    assert "seconds of `zaq-quantize run --strategy ...` here, predicted" in text
    assert re.search(r"^  pwlq\+gptq +\d+\.\d$", text, re.MULTILINE)
    assert "8x1x3x3" in text
    assert "PWLQ 3b MAC/4b stored" in text
    assert "float32" in text
    assert "hosts" not in text


def test_a_host_that_cannot_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from zaq_timm.looking import predict

    class Never:
        def why_not(self, assignment: object) -> str:
            return "never can"

    monkeypatch.setattr(predict, "find_host", lambda name: Never())
    output = predict.ask("never", nn.Linear(2, 2), torch.zeros(1, 2))
    assert output == {"takes": False, "reason": "never can"}

    def missing(name: str) -> object:
        raise ImportError("never needs a tool (>=1)\nand more")

    monkeypatch.setattr(predict, "find_host", missing)
    output = predict.ask("never", nn.Linear(2, 2), torch.zeros(1, 2))
    assert output == {"takes": False, "reason": "ImportError: never needs a tool (>=1)"}


def test_an_onnx_file_has_the_layers_of_its_model(here: Path) -> None:
    import inspected_net

    x = torch.randn(4, 1, 16, 16)
    student = simulate(fold_batch_norm(inspected_net.tiny().eval(), (x,)), PWLQSpec(bits=4))
    calibrate(student, [x])
    zaq_onnx.export(student, (x,), "tiny.onnx")
    outline = sketch_onnx(here / "tiny.onnx")
    assert {layer.name: layer.numel for layer in outline.layers} == {"conv": 72, "linear": 7840}
    assert outline.weights.startswith("zaq_onnx.export: ")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["w.safetensors"], "say which model it belongs to with --model NAME"),
        (["nowhere.onnx"], "nowhere.onnx"),
        (["resnet1*"], "inspect looks at one model; 'resnet1*' names resnet10t, "),
        (["inspected_net:nothing", "--input-size", SIZE], "inspected_net:nothing failed"),
        (["inspected_net:tiny"], "it does not say what images it takes; pass --input-size"),
    ],
)
def test_what_cannot_be_inspected(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    save_file({"weight": torch.zeros(2, 2)}, here / "w.safetensors")
    assert cli.main(["inspect", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("zaq-quantize inspect: error: ")
    assert text in error
