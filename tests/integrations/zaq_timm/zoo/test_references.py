"""Which models a run is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from zaq_timm.zoo.references import Reference, find_references, matching
from zaq_timm.zoo.settings import Settings

timm = pytest.importorskip("timm", reason="names and wildcards are timm's")


def names(*models: str, **more: object) -> list[str]:
    return [r.name for r in find_references(Settings(models=models, **more))]  # type: ignore[arg-type]


def test_wildcards_are_timms_and_each_model_comes_once() -> None:
    assert names("resnet1*", "resnet18", "vit_tiny*") == [
        *timm.list_models("resnet1*"),
        *timm.list_models("vit_tiny*"),
    ]
    assert names("resnet1*", exclude=("resnet18",)) == [
        n for n in timm.list_models("resnet1*") if n != "resnet18"
    ]


def test_names_read_from_timms_sources_are_those_that_it_registers() -> None:
    assert matching("*") == timm.list_models()
    assert matching("ResNet18") == []  # like timm.list_models, by case
    deprecated = "convnext_tiny_in22ft1k"  # not listed, and still made
    assert names(deprecated) == [deprecated]


def test_a_tag_names_weights() -> None:
    (tagged, *_) = timm.list_pretrained("resnet18.*")
    assert names(tagged) == [tagged]


def test_functions_and_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "my.safetensors"
    path.write_bytes(b"")
    references = find_references(
        Settings(models=("my.module:tiny",), checkpoint=str(path), model="resnet18")
    )
    assert references == [Reference("my.module:tiny"), Reference("resnet18", str(path.resolve()))]
    assert references[0].is_function
    assert [r.key.rsplit("-", 1)[0] for r in references] == ["my.module-tiny", "resnet18@my"]


@pytest.mark.parametrize(
    ("models", "more", "words"),
    [
        ((), {}, "no model to quantize"),
        (("resnet81",), {}, "timm has no model 'resnet81'. Did you mean"),
        (("quantumnet*",), {}, "no timm model matches 'quantumnet*'"),
        (("my module:tiny",), {}, "a function is named as package.module:function"),
        (("resnet18",), {"exclude": ("res*",)}, "no model is left: exclude takes out all"),
        (("resnet18.nobodys_weights",), {}, "resnet18 has no weights 'nobodys_weights'"),
    ],
)
def test_what_is_no_model(models: tuple[str, ...], more: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        names(*models, **more)
    assert words in str(caught.value)


def test_a_checkpoint_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt does not exist"):
        find_references(Settings(checkpoint="nowhere.pt", model="resnet18"))


def test_keys_are_unique_and_safe(tmp_path: Path) -> None:
    one = [
        Reference("a.b:c"),
        Reference("a.b-c"),
        Reference("a", "x/w.pt"),
        Reference("a", "y/w.pt"),
    ]
    keys = [r.key for r in one]
    assert len(set(keys)) == 4
    for key in keys:
        (tmp_path / key).mkdir()
    assert Reference("resnet18.a1_in1k").key == "resnet18.a1_in1k"
