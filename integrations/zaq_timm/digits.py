"""The demo's own model and images: a small residual network on scikit-learn's handwritten digits.

1,797 real scans of 8 x 8 pixels in 17 grey levels come with scikit-learn, so the demo needs no
download. The split is fixed: one third of every class is held out. `examples/train_digits.py` made
the checkpoint that ships with the package; it never looked at the held-out images.

The demo's network is depthwise separable, narrow and deep, as networks for phones are: every layer
has few channels and nothing goes around it, so what one layer rounds wrongly all others see.
"""

from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGE_SHAPE = (1, 8, 8)
SPLIT_SEED = 0
# Of the training images, on their 0..1 scale.
PIXEL_MEAN, PIXEL_STD = 0.306, 0.377


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, added to their input and rectified."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Makes a block from `channels_in` to `channels`; a 1 x 1 convolution fits the shortcut."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(batch, channels_in, H, W)` to `(batch, channels, H / stride, W / stride)`."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A residual network of eight convolutions and one linear layer, 76 thousand weights.

    Takes `(batch, 1, 8, 8)`, standardised as `load_digits_split` does, and gives `(batch, 10)`
    logits.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        """Makes an untrained network; `widths` are the channels of its three stages."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.stage1 = ResidualBlock(widths[0], widths[0], 1)
        self.stage2 = ResidualBlock(widths[0], widths[1], 2)
        self.stage3 = ResidualBlock(widths[1], widths[2], 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[2], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(batch, 1, 8, 8)` to logits `(batch, 10)`."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.linear(self.flatten(self.pool(x)))


@dataclass(frozen=True)
class DigitsSplit:
    """The images, standardised, `(n, 1, 8, 8)` float32, and their labels, `(n,)` int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits_split() -> DigitsSplit:
    """Loads the 1,797 scans, split 1,198 to 599, always in the same way.

    One third of every class, drawn with a fixed seed, is held out. The held-out images are for
    measuring only: nothing may be trained, calibrated, or chosen on them.

    Raises:
        ImportError: scikit-learn is missing; the text says how to install it.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the handwritten digits come with scikit-learn, which is not installed. "
            "Install it with: pip install 'zaq_plugin[timm]'."
        ) from error
    data = load_digits()
    labels = np.asarray(data.target, dtype=np.int64)
    # RandomState's stream is frozen for good, the newer Generator's is not.
    random = np.random.RandomState(SPLIT_SEED)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        of_class = random.permutation(np.flatnonzero(labels == digit))
        held_out[of_class[: round(len(of_class) / 3)]] = True
    pixels = torch.from_numpy(np.asarray(data.images, dtype=np.float32) / 16.0)
    images = ((pixels - PIXEL_MEAN) / PIXEL_STD).unsqueeze(1)
    test, target = torch.from_numpy(held_out), torch.from_numpy(labels)
    return DigitsSplit(images[~test], target[~test], images[test], target[test])


def digits_model() -> DigitsResNet:
    """Returns the trained network that ships with the package, in evaluation mode."""
    model = DigitsResNet()
    with as_file(files("zaq_timm") / "data" / "digits.safetensors") as path:
        model.load_state_dict(load_file(path))
    return model.eval()


STEM = 8
BLOCKS = ((8, 1),) * 4 + ((12, 2),) + ((12, 1),) * 5 + ((24, 2),) + ((24, 1),) * 3
"""Output channels and stride of each block."""


def separable_block(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """A depthwise 3 x 3 and a pointwise convolution, each with BatchNorm and ReLU6 (MobileNet).

    Args:
        channels_in: of its input.
        channels: of its output.
        stride: of the depthwise convolution.
    """
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.ReLU6(),
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
    )


class DigitsSeparableNet(nn.Module):
    """A convolution, depthwise separable blocks and a linear layer.

    Takes `(batch, 1, 8, 8)`, standardised as `load_digits_split` does, and gives `(batch, 10)`
    logits.
    """

    def __init__(self) -> None:
        """Makes an untrained network."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, STEM, 3, 1, 1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU6()
        )
        before = (STEM, *(channels for channels, _ in BLOCKS))
        self.blocks = nn.Sequential(
            *(
                separable_block(channels_in, channels, stride)
                for channels_in, (channels, stride) in zip(before, BLOCKS, strict=False)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(before[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(batch, 1, 8, 8)` to logits `(batch, 10)`."""
        return self.linear(self.flatten(self.pool(self.blocks(self.stem(x)))))


def separable_model() -> DigitsSeparableNet:
    """Returns the trained network that ships with the package, in evaluation mode."""
    model = DigitsSeparableNet()
    with as_file(files("zaq_timm") / "data" / "digits-separable.safetensors") as path:
        model.load_state_dict(load_file(path))
    return model.eval()
