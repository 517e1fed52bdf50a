"""Float models: from timm, from functions, with weights from files, and nothing unpickled."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.models import load, load_weights, read_checkpoint
from zaq_timm.zoo.references import Reference
from zaq_timm.zoo.settings import Settings

timm = pytest.importorskip("timm", reason="the zoo is timm's")
SMALL = Settings(models=("test_resnet",), input_size="3x64x64")


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))


def test_transforms_come_from_the_pretrained_cfg() -> None:
    loaded = load(Reference("test_vit"), Settings())
    config = timm.create_model("test_vit").pretrained_cfg
    assert loaded.inputs.shape == config["input_size"]
    assert loaded.inputs.mean == config["mean"]
    assert loaded.inputs.std == config["std"]
    assert loaded.inputs.crop_pct == config["crop_pct"]
    assert loaded.inputs.interpolation == config["interpolation"]
    assert loaded.weights == "random"
    assert loaded.notes == ()
    assert not loaded.model.training


def test_a_model_that_does_not_say_its_images_is_remarked() -> None:
    loaded = load(Reference("zoo_own_models:branching"), Settings())
    assert loaded.inputs.mean == (0.485, 0.456, 0.406)
    assert loaded.notes[0].startswith(
        "the model does not say its images' mean and std: ImageNet's is taken; give it a pretrained"
    )
    assert load(Reference("zoo_own_models:grey"), Settings()).notes == ()


def test_a_seed_fixes_random_weights() -> None:
    one, same, other = (
        load(Reference("test_resnet"), Settings(seed=s)).model.state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_models_of_fixed_size_are_made_for_another(tmp_path: Path) -> None:
    loaded = load(Reference("vit_tiny_patch16_224"), Settings(input_size="3x64x64"))
    assert loaded.inputs.shape == (3, 64, 64)
    with pytest.raises(LeftOut, match="does not take images of 1x64x64"):
        load(Reference("zoo_own_models:tiny"), Settings(input_size="1x64x64"))


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_is_loaded(tmp_path: Path, ending: str, nested: bool) -> None:
    torch.manual_seed(5)
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    path = tmp_path / f"my.{ending}"
    if ending == "safetensors":
        save_file(state, path)
    else:
        wrapped = {f"module.{k}": v for k, v in state.items()}
        torch.save({"state_dict": wrapped} if nested else state, path)
    settings = Settings(checkpoint=str(path), model="test_resnet", num_classes=7)
    loaded = load(Reference("test_resnet", str(path)), settings)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[name])
    assert loaded.weights == f"checkpoint my.{ending}"


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_compiled_and_parallel_models(tmp_path: Path, ending: str, prefix: str) -> None:
    torch.manual_seed(5)
    state, path = tiny().state_dict(), tmp_path / f"my.{ending}"
    wrapped = {f"{prefix}{k}": v.clone() for k, v in state.items()}
    save_file(wrapped, path) if ending == "safetensors" else torch.save(wrapped, path)
    fresh = tiny()
    assert not all(torch.equal(v, state[k]) for k, v in fresh.state_dict().items())
    load_weights(fresh, path)
    assert all(torch.equal(v, state[k]) for k, v in fresh.state_dict().items())


def test_a_checkpoint_of_another_model_is_told(tmp_path: Path) -> None:
    path = tmp_path / "my.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), path)
    with pytest.raises(LeftOut) as caught:
        load(Reference("test_resnet", str(path)), SMALL)
    assert "my.safetensors does not fit the model: tensors 2 of other shape (" in str(caught.value)
    assert "num_classes may be wrong" in str(caught.value)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(LeftOut, match=r"missing \(.*, 1 unknown \(x\)"):
        load_weights(tiny(), path)


class Trap:
    """What a hostile checkpoint does when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (os.system, ("touch sprung",))


def test_code_in_a_checkpoint_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Trap()}, tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"weight": Trap()}))
    for name in ("new.pt", "old.pt"):
        with pytest.raises(LeftOut, match=f"{name} is refused: it holds more than tensors"):
            load_weights(tiny(), tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((tmp_path / "old.pt").read_bytes())  # noqa: S301
    assert (tmp_path / "sprung").exists()  # the trap works


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_what_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no tensors at all, sorry")
    with pytest.raises(ValueError, match=r"a\.(safetensors|pt) is (no|refused)"):
        read_checkpoint(tmp_path / name)


def test_a_torch_file_without_a_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds no state_dict"):
        read_checkpoint(tmp_path / "a.pt")


def test_functions_make_models() -> None:
    loaded = load(Reference("zoo_own_models:tiny"), Settings(input_size="3x8x8"))
    assert loaded.inputs.mean == (0.485, 0.456, 0.406)
    assert load(Reference("zoo_own_models:grey"), Settings()).inputs.shape == (1, 8, 8)
    for name, words in (
        ("zoo_own_models:tiny", "does not say what images it takes; pass --input-size"),
        ("zoo_own_models:nothing", r"zoo_own_models:nothing failed \(module"),
        ("zoo_own_models:number", r"must return a torch.nn.Module; it returned int"),
        ("no_such_module_here:f", "no_such_module_here cannot be imported"),
    ):
        with pytest.raises(LeftOut, match=words):
            load(Reference(name), Settings())


def test_models_without_weights_in_timm_say_so() -> None:
    name = next(n for n in timm.list_models() if not timm.models.is_model_pretrained(n))
    with pytest.raises(LeftOut, match="timm has no pretrained weights for it; pass them with"):
        load(Reference(name), Settings(pretrained=True))


@pytest.mark.slow
def test_offline_says_so_and_what_to_do(tmp_path: Path) -> None:
    code = (
        "from zaq_timm.zoo.models import load\n"
        "from zaq_timm.zoo.references import Reference\n"
        "from zaq_timm.zoo.settings import Settings\n"
        "from zaq_timm.zoo.errors import LeftOut\n"
        "try: load(Reference('test_resnet'), Settings(pretrained=True))\n"
        "except LeftOut as error: print(error)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    text = subprocess.run(command, env=offline, capture_output=True, text=True, check=True).stdout
    assert text.startswith("its weights could not be downloaded (")
    assert "zaq-quantize run --model test_resnet --checkpoint FILE" in text
