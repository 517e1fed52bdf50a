"""The demo's network: its accuracy, its size, and what makes it hard to round."""

from importlib.resources import files

import torch
from torch import nn

from zaq_timm.digits import BLOCKS, STEM, DigitsSeparableNet, load_digits_split, separable_model


@torch.no_grad()
def test_the_shipped_network_reads_the_held_out_digits() -> None:
    split, model = load_digits_split(), separable_model()
    assert not model.training
    right = (model(split.test_images).argmax(1) == split.test_labels).float().mean().item()
    assert right >= 0.98


def test_the_checkpoint_is_small() -> None:
    data = files("zaq_timm") / "data" / "digits-separable.safetensors"
    assert data.stat().st_size < 100_000


def test_every_block_is_a_depthwise_and_a_pointwise_convolution() -> None:
    model = DigitsSeparableNet()
    channels = STEM
    for block, (out, stride) in zip(model.blocks, BLOCKS, strict=True):
        depthwise, pointwise = block[0], block[3]
        assert depthwise.groups == depthwise.in_channels == channels
        assert (depthwise.stride, pointwise.kernel_size) == ((stride, stride), (1, 1))
        channels = out
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 30
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
