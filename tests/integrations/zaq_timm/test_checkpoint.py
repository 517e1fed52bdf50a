"""A quantized network on disk computes what it computed in memory."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec, load_quantized, save_quantized
from zaq_timm.checkpoint import load_checkpoint, save_checkpoint
from zaq_timm.digits import load_digits_split, separable_model
from zaq_timm.hosts import Quantized, simulated


def quantized(spec: QuantSpec, activations: int) -> Quantized:
    model, images = separable_model(), load_digits_split().train_images[:64]
    return simulated(fold_batch_norm(model, (images[:1],)), spec, activations, images.split(32))


@pytest.mark.parametrize(
    ("spec", "activations"),
    [(PWLQSpec(bits=4), 8), (PWLQSpec(bits=2), 4), (UniformSpec(bits=3, symmetry="asymmetric"), 3)],
    ids=lambda value: value.label if hasattr(value, "label") else f"A{value}",
)
@torch.no_grad()
def test_a_loaded_network_gives_the_same_logits(
    tmp_path: Path, spec: QuantSpec, activations: int
) -> None:
    result = quantized(spec, activations)
    files = save_checkpoint(tmp_path, result.model, result.tensors, activations)
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in files} == {(tmp_path / "plain").stat().st_mode}
    assert {path.name for path in tmp_path.iterdir()} == {"plain", *(path.name for path in files)}
    images = load_digits_split().test_images[:50]
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded(images), result.model(images))
    assert not torch.equal(loaded(images), separable_model()(images))


def test_the_weights_on_disk_are_as_small_as_the_table_says(tmp_path: Path) -> None:
    result = quantized(PWLQSpec(bits=4), 8)
    save_checkpoint(tmp_path, result.model, result.tensors, 8)
    arrays = load_file(tmp_path / "quantized.safetensors")
    size = sum(array.numel() * array.element_size() for array in arrays.values())
    assert size == result.layers.stored_bytes


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    result = quantized(PWLQSpec(bits=4), 8)
    _, rest = save_checkpoint(tmp_path, result.model, result.tensors, 8)
    save_file({"a": torch.zeros(1)}, rest, {"format": "something else"})
    with pytest.raises(ValueError, match=r"rest.safetensors: format 'something else', expected"):
        load_checkpoint(tmp_path)


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    result = quantized(PWLQSpec(bits=4), 8)
    weights, _ = save_checkpoint(tmp_path, result.model, result.tensors, 8)
    save_quantized(weights, {"linear": load_quantized(weights)["linear"]})
    with pytest.raises(ValueError, match=r"the checkpoint's layers are linear; the digits network"):
        load_checkpoint(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"quantized.safetensors"):
        load_checkpoint(tmp_path)
