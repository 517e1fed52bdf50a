"""The demo's network: depthwise separable, narrow and deep, as networks for phones are.

Every layer has few channels and nothing goes around it, so what one layer rounds wrongly all
others see. `examples/train_separable.py` made the checkpoint that ships with the package, on the
training images of `zaq_timm.digits` alone.
"""

from importlib.resources import as_file, files

from safetensors.torch import load_file
from torch import Tensor, nn

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
