"""JSON and safetensors: NNCF's own configuration, our file, another process."""

import json
import subprocess
import sys
from pathlib import Path

import networks
import nncf
import nncf.torch
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import zaq_nncf
from zaq_plugin import PWLQSpec

FAST = PWLQSpec(bits=4, policy="gaussian")


@pytest.fixture
def mixed(net: nn.Module, images: Tensor) -> nn.Module:
    """Several formats, narrow activations, biases corrected, a step of training."""
    overrides = {"fc": PWLQSpec(bits=6, breakpoints=2), "block.conv2": PWLQSpec(bits=3)}
    student = zaq_nncf.quantize(net, [images], FAST, activations=4, overrides=overrides)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 1e-3
    return student


def test_nncfs_configuration_through_json(net: nn.Module, images: Tensor, mixed: nn.Module) -> None:
    config = json.loads(json.dumps(nncf.torch.get_config(mixed)))
    float_model = zaq_nncf.prepare_model(net)
    again = nncf.torch.load_from_config(
        float_model, config, allowed_modules=zaq_nncf.ALLOWED_MODULES
    )
    again.load_state_dict(mixed.state_dict())
    assert torch.equal(again.eval()(images), mixed(images))
    assert zaq_nncf.audit(again).records == zaq_nncf.audit(mixed).records
    assert nncf.torch.get_config(again) == nncf.torch.get_config(mixed)


def test_nncf_refuses_our_modules_unless_they_are_allowed(net: nn.Module, mixed: nn.Module) -> None:
    with pytest.raises(nncf.InternalError, match="from untrusted path 'zaq_nncf"):
        nncf.torch.load_from_config(zaq_nncf.prepare_model(net), nncf.torch.get_config(mixed))


def test_a_file_in_this_process(
    net: nn.Module, images: Tensor, mixed: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    zaq_nncf.save_checkpoint(mixed, path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    again = zaq_nncf.load_checkpoint(net, path)
    assert torch.equal(again(images), mixed(images))
    teacher, other = zaq_nncf.twin(again), zaq_nncf.twin(mixed)
    assert torch.equal(teacher(images), other(images))
    assert torch.equal(zaq_nncf.strip(again)(images), mixed(images))


SCRIPT = """
import sys
import torch
from safetensors.torch import load_file, save_file
sys.path.insert(0, sys.argv[1])
import networks
import zaq_nncf
model = zaq_nncf.load_checkpoint(networks.Net(6), sys.argv[2])
images = load_file(sys.argv[3])["images"]
save_file({"out": model(images).detach()}, sys.argv[4])
"""


@pytest.mark.slow
def test_a_file_in_a_fresh_process(images: Tensor, mixed: nn.Module, tmp_path: Path) -> None:
    path, source, target = (str(tmp_path / name) for name in ("m.st", "images.st", "out.st"))
    zaq_nncf.save_checkpoint(mixed, path)
    save_file({"images": images}, source)
    folder = str(Path(networks.__file__).parent)
    command = [sys.executable, "-c", SCRIPT, folder, path, source, target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(target)["out"], mixed(images))


def test_files_that_are_none(net: nn.Module, quantized: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of zaq_nncf"):
        zaq_nncf.load_checkpoint(net, path)
    zaq_nncf.save_checkpoint(quantized, path)
    with pytest.raises(ValueError, match="belongs to another model than this Linear"):
        zaq_nncf.load_checkpoint(nn.Linear(3, 3), path)
    with pytest.raises(ValueError, match="Save it before zaq_nncf.strip"):
        zaq_nncf.save_checkpoint(zaq_nncf.strip(quantized), path)
