"""Small networks without BatchNorm, trained here on real images in minutes, and kept.

A vision transformer and a ConvNeXt as timm builds them, and a residual network whose branches start
at zero in place of normalisation (Fixup, Zhang et al., ICLR 2019). Each is trained on CIFAR-10's
``train`` images of the data folder, and on scikit-learn's digits, enlarged to 16 x 16. CIFAR-10's
ResNet-20 teaches the first, since 1,600 images are few. The test images only ever measure; a fifth
of the training images are held back, for choosing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.data.tasks import CIFAR_MEAN, CIFAR_STD, load_cifar10
from zaq_timm.digits import PIXEL_MEAN, PIXEL_STD, load_digits_split

DIGITS_SIDE = 16
HELD_BACK = 0.2
"""The share of the training images that trains nothing and calibrates nothing."""
BATCH = 64


class FixupBlock(nn.Module):
    """Two 3x3 convolutions with scalar biases and one scale, and a shortcut of option A."""

    def __init__(self, inputs: int, outputs: int, stride: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.biases = nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(()))
        self.stride, self.padding = stride, (outputs - inputs) // 2
        fan = 9 * outputs
        nn.init.normal_(self.conv1.weight, std=math.sqrt(2 / fan) / math.sqrt(blocks))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y = F.relu(self.conv1(x + self.biases[0]) + self.biases[1])
        y = self.conv2(y + self.biases[2]) * self.scale + self.biases[3]
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, *[self.padding] * 2])
        return F.relu(y + x)


class FixupResNet(nn.Module):
    """A convolution, two blocks for each of 16, 32 and 64 channels, and a linear layer."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1)
        shapes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(FixupBlock(*shape, len(shapes)) for shape in shapes))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, classes)."""
        out: Tensor = self.linear(self.blocks(F.relu(self.conv1(x))).mean((2, 3)))
        return out


def vit(channels: int, side: int) -> nn.Module:
    """64 patches and a class token, four blocks of 64 channels and four heads."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 10}
    model: nn.Module = VisionTransformer(side, side // 8, channels, **sizes)
    return model


def convnext(channels: int, side: int) -> nn.Module:
    """Blocks 1, 1, 2, 1 of 16, 32, 64 and 128 channels on 16 x 16 patches."""
    from timm.models.convnext import ConvNeXt

    model: nn.Module = ConvNeXt(
        channels, 10, depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), patch_size=side // 16,
        kernel_sizes=3, ls_init_value=0.1,
    )  # fmt: skip
    return model


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "vit": vit,
    "convnext": convnext,
    "fixup": lambda channels, side: FixupResNet(channels),
}
"""Makes an untrained network for so many channels of so many pixels a side."""


@dataclass(frozen=True)
class Images:
    """What trains, chooses and measures.

    Attributes:
        train: (n, C, H, W), normalised: trains and may calibrate.
        targets: (n, classes) probabilities that training aims at.
        held_back: Of the same source; may choose settings.
        test: Measures, and nothing else.
        labels: Of the test images.
        mean, std: The normalisation.
        flips: Whether a mirrored image is one of the same class.
        epochs: Of training.
    """

    train: Tensor
    targets: Tensor
    held_back: Tensor
    test: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool
    epochs: int


def cifar_images(data: Path) -> Images:
    """CIFAR-10's, with ResNet-20's answers as targets.

    Args:
        data: The folder of models and images.
    """
    task = load_cifar10(data)
    assert task.train is not None
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))
    images = task.train[order]
    count = round(HELD_BACK * len(images))
    with torch.no_grad():
        logits = torch.cat([task.model(part) for part in images[count:].split(250)])
    return Images(
        images[count:], (logits / 2).softmax(1), images[:count], task.images, task.labels,
        CIFAR_MEAN, CIFAR_STD, True, 40,
    )  # fmt: skip


def digits_images() -> Images:
    """Scikit-learn's digits, enlarged to 16 x 16."""
    split = load_digits_split()
    train, test = (
        F.interpolate(part, size=DIGITS_SIDE, mode="bilinear", align_corners=False)
        for part in (split.train_images, split.test_images)
    )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    count = round(HELD_BACK * len(train))
    targets = F.one_hot(split.train_labels[order[count:]], 10).float() * 0.9 + 0.01
    return Images(
        train[order[count:]], targets, train[order[:count]], test, split.test_labels,
        (PIXEL_MEAN,), (PIXEL_STD,), False, 40,
    )  # fmt: skip


def augmented(images: Tensor, flips: bool, rng: torch.Generator) -> Tensor:
    """Shifted by up to an eighth of the side, and half of them mirrored where that is allowed."""
    side = images.shape[-1]
    reach = side // 8
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    down, right = torch.randint(2 * reach + 1, (2, len(images)), generator=rng).tolist()
    cut = [
        padded[i, :, d : d + side, r : r + side]
        for i, (d, r) in enumerate(zip(down, right, strict=True))
    ]
    moved = torch.stack(cut)
    if not flips:
        return moved
    mirrored = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5
    return torch.where(mirrored, moved.flip(-1), moved)


def train(name: str, images: Images, seed: int = 0) -> nn.Module:
    """A network, trained by AdamW with a one-cycle rate, in evaluation mode.

    Args:
        name: Of `NETWORKS`.
        images: What trains it.
        seed: Of weights, order and augmentation.
    """
    channels, side = images.train.shape[1], images.train.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name](channels, side).train()
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    count = len(images.train) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=images.epochs * count
    )
    for _ in range(images.epochs):
        order = torch.randperm(len(images.train), generator=rng)
        for chosen in order[: count * BATCH].split(BATCH):
            x = augmented(images.train[chosen], images.flips, rng)
            loss = F.cross_entropy(model(x), images.targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


def trained(name: str, source: str, images: Images, cache: Path) -> nn.Module:
    """A network from the cache; the first time it is trained.

    Args:
        name: Of `NETWORKS`.
        source: ``cifar`` or ``digits``.
        images: Of that source.
        cache: Folder.
    """
    path = cache / f"norm-free-{name}-{source}.safetensors"
    if not path.exists():
        state = train(name, images).state_dict()
        cache.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    model = NETWORKS[name](images.train.shape[1], images.train.shape[-1])
    model.load_state_dict(load_file(path))
    return model.eval()
