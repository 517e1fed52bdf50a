"""Models and images for the benchmarks, from a data folder that is not part of the project.

``cifar10`` is CIFAR-10's ResNet-20 (He et al., 2016, section 4.2, shortcuts of option A),
``imagenet`` is MobileNetV1 at width 0.25. Images named ``test`` or ``images`` only ever measure;
``train`` may calibrate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclass
class Task:
    """A model with the images that measure it.

    Attributes:
        name: ``cifar10`` or ``imagenet``.
        model: In evaluation mode.
        images: (n, 3, height, width) float32, normalised as the model wants it; for measuring only.
        labels: (n,) class of each image.
        train: Images that may calibrate, or None where there are none.
        published: Top-1 of the float model on these files, percent.
    """

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    train: Tensor | None
    published: float


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, *[self.padding] * 2])
        return F.relu(y + x)


class ResNet20(nn.Module):
    """The original CIFAR network: three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(outputs, outputs, 1) for _ in range(2)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 32, 32) to (n, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalise(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(n, h, w, 3) uint8 to (n, 3, h, w) float32."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def load_cifar10(data: Path) -> Task:
    """CIFAR-10 ResNet-20: 5,000 test images, 2,000 that may calibrate; 87.72 % in float."""
    folder = data / "cifar10"
    model = ResNet20()
    model.load_state_dict(load_file(require(folder / "resnet20.safetensors")))
    test, train = np.load(require(folder / "test.npz")), np.load(require(folder / "train.npz"))
    return Task(
        "cifar10",
        model.eval(),
        normalise(test["images"], CIFAR_MEAN, CIFAR_STD),
        torch.from_numpy(test["labels"].astype(np.int64)),
        normalise(train["images"], CIFAR_MEAN, CIFAR_STD),
        87.72,
    )


def mobilenet_v1_025() -> nn.Module:
    """MobileNetV1 at width 0.25 (TensorFlow's padding), which timm's names do not reach."""
    from timm.models.efficientnet import _gen_mobilenet_v1

    model: nn.Module = _gen_mobilenet_v1(
        "mobilenetv1_100", 0.25, pretrained=False, pad_type="same", bn_eps=1e-3
    )
    half = (0.5, 0.5, 0.5)
    model.pretrained_cfg = {  # type: ignore[assignment]
        "input_size": (3, 224, 224),
        "mean": half,
        "std": half,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    return model


def load_imagenet(data: Path) -> Task:
    """ImageNet MobileNetV1 0.25 with 400 images, one a class; 59.0 % in float."""
    from PIL import Image

    folder = data / "imagenet"
    model = mobilenet_v1_025()
    model.load_state_dict(load_file(require(folder / "mobilenet_v1_025.safetensors")))
    paths = sorted(require(folder / "images").glob("*/*.jpg"))
    if not paths:
        raise FileNotFoundError(f"no images under {folder / 'images'}")
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    half = (0.5, 0.5, 0.5)
    labels = torch.tensor([int(path.parent.name) for path in paths])
    return Task("imagenet", model.eval(), normalise(pixels, half, half), labels, None, 59.0)


def foreign_images(data: Path, task: Task, count: int) -> Tensor:
    """Real images for a task that has none to calibrate with: CIFAR-10's ``train``, enlarged.

    Returns:
        (count, 3, height, width) in the normalisation of ImageNet's MobileNetV1 (mean and deviation
        one half).
    """
    pixels = np.load(require(data / "cifar10" / "train.npz"))["images"]
    order = np.random.default_rng(0).permutation(len(pixels))[:count]
    half = (0.5, 0.5, 0.5)
    small = normalise(pixels[order], half, half)
    size = (task.images.shape[2], task.images.shape[3])
    return torch.nn.functional.interpolate(small, size, mode="bicubic").clamp(-1, 1)


LOADERS = {"cifar10": load_cifar10, "imagenet": load_imagenet}


def load_task(name: str, data: Path) -> Task:
    """A task by name.

    Raises:
        ValueError: If there is no such task.
        FileNotFoundError: If a file is missing; the message says which.
    """
    if name not in LOADERS:
        raise ValueError(f"no task {name!r}; known are {', '.join(LOADERS)}")
    return LOADERS[name](data)


def require(path: Path) -> Path:
    """The path, if it exists.

    Raises:
        FileNotFoundError: With the way out.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; --data must name the folder that holds it")
    return path


def logits_of(model: nn.Module, images: Tensor, batch: int) -> Tensor:
    """The model's outputs on all images, (n, classes)."""
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(batch)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    return 100 * float((logits.argmax(1) == labels).double().mean())


def distil(
    model: nn.Module, count: int, size: int, *, steps: int = 80, batch: int = 64, seed: int = 0
) -> Tensor:
    """Images without data: noise moved until BatchNorm inputs have the stored statistics.

    The loss is the squared distance of means and standard deviations, summed over layers (ZeroQ,
    Cai et al., CVPR 2020, equation 3).

    Args:
        model: A float model with its BatchNorm layers in place.
        count: Number of images.
        size: Their height and width.
        steps: Adam steps at 0.1 for every batch.
        batch: Images optimised together.
        seed: Of the noise.

    Returns:
        (count, 3, size, size).
    """
    generator = torch.Generator().manual_seed(seed)
    losses: list[Tensor] = []

    def compare(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, mean, var = args[0], norm.running_mean, norm.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(var, Tensor)
        spread = (x.var((0, 2, 3), correction=0) + 1e-6).sqrt()
        losses.append((x.mean((0, 2, 3)) - mean).square().mean())
        losses.append((spread - (var + 1e-6).sqrt()).square().mean())

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(compare) for norm in norms]
    parts = []
    try:
        for start in range(0, count, batch):
            shape = (min(batch, count - start), 3, size, size)
            images = torch.randn(shape, generator=generator).requires_grad_(True)
            optimizer = torch.optim.Adam([images], lr=0.1)
            for _ in range(steps):
                losses.clear()
                model(images)
                loss = torch.stack(losses).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            parts.append(images.detach())
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(parts)
