"""The shipped network: its split, its accuracy, its size, and that graphs can be made of it."""

from collections.abc import Callable
from importlib.resources import files

import pytest
import torch
from torch import nn

from zaq_timm.digits import DigitsResNet, digits_model, load_digits_split, separable_model


def test_the_split_holds_out_a_third_of_every_class() -> None:
    split = load_digits_split()
    assert len(split.train_labels) + len(split.test_labels) == 1797
    total = split.train_labels.bincount() + split.test_labels.bincount()
    assert ((split.test_labels.bincount() - total / 3).abs() <= 0.5).all()
    assert split.train_images.shape == (1198, 1, 8, 8)
    assert split.train_images.dtype == torch.float32


def test_the_split_is_the_whole_data_set_and_always_the_same() -> None:
    from sklearn.datasets import load_digits

    one, two = load_digits_split(), load_digits_split()
    assert torch.equal(one.test_images, two.test_images)
    ours = torch.cat([one.train_images, one.test_images]).flatten(1)
    pixels = torch.tensor(load_digits().data, dtype=torch.float32)
    # Standardising is affine, so the order of the row sums tells the images apart well enough.
    standard = ((ours - ours.mean()) / ours.std()).sum(1).sort().values
    expected = ((pixels - pixels.mean()) / pixels.std()).sum(1).sort().values
    torch.testing.assert_close(standard, expected, atol=2e-3, rtol=0)


def test_pixels_are_standardised_by_the_training_images() -> None:
    images = load_digits_split().train_images
    assert abs(images.mean().item()) < 0.01
    assert abs(images.std().item() - 1) < 0.01


@torch.no_grad()
def test_the_shipped_network_reads_the_held_out_digits() -> None:
    split = load_digits_split()
    model = digits_model()
    assert not model.training
    right = (model(split.test_images).argmax(1) == split.test_labels).float().mean().item()
    assert right >= 0.98


def test_the_checkpoint_is_small() -> None:
    assert (files("zaq_timm") / "data" / "digits.safetensors").stat().st_size < 1_000_000


@torch.no_grad()
def test_batch_norm_matters() -> None:
    """The network would be a poor example for folding if its BatchNorms did nothing."""
    split = load_digits_split()
    model = digits_model()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(1)
            module.bias.zero_()
            module.running_mean.zero_()
            module.running_var.fill_(1)
    right = (model(split.test_images).argmax(1) == split.test_labels).float().mean().item()
    assert right < 0.7


@pytest.mark.parametrize("network", [digits_model, separable_model])
@pytest.mark.parametrize("how", ["fx", "export"])
def test_hosts_can_trace_it(how: str, network: Callable[[], nn.Module]) -> None:
    model, x = network(), torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    if how == "fx":
        traced: nn.Module = torch.fx.symbolic_trace(model)
    else:
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        traced = torch.export.export(model, (x,), dynamic_shapes=(batch,)).module()
    torch.testing.assert_close(traced(x), model(x))


def test_an_untrained_network_has_the_same_names() -> None:
    assert DigitsResNet().state_dict().keys() == digits_model().state_dict().keys()
