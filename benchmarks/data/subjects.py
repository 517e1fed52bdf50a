"""The models of the field benchmark behind one face: images, a score, images that may calibrate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.data.dense import LOADERS as DENSE
from benchmarks.data.dense import DenseTask
from benchmarks.data.graph_modules import to_modules
from benchmarks.data.lite import HALF, SHAPES, ImageFiles, imagenet_files, load_lite, load_lite_task
from benchmarks.data.tasks import CIFAR_MEAN, CIFAR_STD, Task, accuracy, load_task

TITLES = {
    "cifar10": "CIFAR-10 ResNet-20",
    "imagenet": "ImageNet MobileNetV1-0.25",
    "camvid": "CamVid ESPNet",
    "coco": "COCO FastestDet",
}
BATCH = {"cifar10": 250, "imagenet": 50, "camvid": 8, "coco": 16}
SYNTHETIC = {"cifar10": 256, "imagenet": 128, "camvid": 8, "coco": 32}
"""How many synthetic images calibrate; large inputs get few, they take long to make."""
EFFORT = {"cifar10": 1.0, "imagenet": 1.0, "camvid": 0.25, "coco": 1.0}
"""What steps of distillation and training are multiplied by, for the same reason."""
VALIDATION = "-val"
"""What the name of a model ends with that ImageNet's own validation images measure."""
for _lite in SHAPES:
    for _name in (_lite, _lite + VALIDATION):
        _images = "validation images" if _name.endswith(VALIDATION) else "400 images"
        TITLES[_name] = f"ImageNet EfficientNet-Lite{_lite[-1]}, {_images}"
        BATCH[_name], SYNTHETIC[_name], EFFORT[_name] = 25, 32, 1.0
REAL = 512
"""How many real images calibrate."""


@dataclass
class Subject:
    """A model to quantize and what measures it.

    Attributes:
        name: Of the model.
        model: The float model, in evaluation mode, with its BatchNorms.
        images: For measuring only.
        files: What measures in their place, where it is too much for the memory.
        score: Outputs on the first images to percent.
        metric: What the score is.
        agreement: Share in percent of what two models' outputs on the first images decide alike:
            classes, pixels' classes, or boxes.
        train: Images that may calibrate, or None.
        mean, std: The input's normalisation, pixels from 0 to 1.
        published: The float score on these files.
    """

    name: str
    model: nn.Module
    images: Tensor
    score: Callable[[Tensor], float]
    metric: str
    agreement: Callable[[Tensor, Tensor], float]
    train: Tensor | None
    mean: list[float]
    std: list[float]
    published: float
    files: ImageFiles | None = None

    @torch.no_grad()
    def outputs(self, model: nn.Module, limit: int | None = None) -> Tensor:
        """What a model answers on all images, or the first ones; on the CPU."""
        measured = self.images if self.files is None else self.files
        parts = measured[:limit].split(BATCH[self.name])
        device = self.images.device
        with parametrize.cached():  # weights are quantized once
            return torch.cat([model(part.to(device)).cpu() for part in parts])

    def to(self, device: torch.device) -> Subject:
        """The same with its model and its images there; outputs are measured on the CPU."""
        train = None if self.train is None else self.train.to(device)
        return replace(
            self, model=self.model.to(device), images=self.images.to(device), train=train
        )

    def calibration(self, seed: int, count: int = REAL) -> Tensor:
        """Real images that may calibrate, another choice for each seed.

        Raises:
            ValueError: If the model has none.
        """
        if self.train is None:
            raise ValueError(f"{self.name} has no images that may calibrate; use synthetic ones")
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        return self.train[order[:count].to(self.train.device)]


def clock(subject: Subject) -> float:
    """Processor seconds of this process; on a GPU wall time, once it has done what it was told."""
    if subject.images.is_cuda:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def load_subject(name: str, data: Path | None, imagenet: Path | None = None) -> Subject:
    """A subject by name.

    Args:
        name: One of `TITLES`.
        data: Folder of models and images; of all other models.
        imagenet: Folder that holds ``val/<wnid>/*.JPEG``; of models that end with `VALIDATION`.

    Raises:
        ValueError: If there is no such model, or it needs a folder and there is none.
        FileNotFoundError: If a file is missing.
        ImportError: If the weights are in a package that is not installed.
    """
    if name.endswith(VALIDATION) and name.removesuffix(VALIDATION) in SHAPES:
        if imagenet is None:
            raise ValueError(f"{name} is measured on ImageNet; --imagenet must name its folder")
        return _validation(name, imagenet)
    if data is None:
        raise ValueError(f"{name} needs images; --data must name the folder that holds them")
    if name in DENSE:
        return _dense(DENSE[name](data))
    if name in SHAPES:
        return _classifier(load_lite_task(name, data))
    return _classifier(load_task(name, data))


def _classifier(task: Task) -> Subject:
    half = [0.5, 0.5, 0.5]
    mean, std = (list(CIFAR_MEAN), list(CIFAR_STD)) if task.name == "cifar10" else (half, half)
    # The files are sorted by class; the first images are to be of all of them.
    order = torch.randperm(len(task.labels), generator=torch.Generator().manual_seed(0))
    labels = task.labels[order]
    return Subject(
        task.name,
        task.model,
        task.images[order],
        lambda outputs: accuracy(outputs, labels[: len(outputs)]),
        "top-1",
        lambda expected, actual: accuracy(actual, expected.argmax(1)),
        task.train,
        mean,
        std,
        task.published,
    )


def _validation(name: str, imagenet: Path) -> Subject:
    lite = name.removesuffix(VALIDATION)
    files, labels = imagenet_files(lite, imagenet)
    return Subject(
        name,
        load_lite(lite),
        files[:2].tensor(),
        lambda outputs: accuracy(outputs, labels[: len(outputs)]),
        "top-1",
        lambda expected, actual: accuracy(actual, expected.argmax(1)),
        None,
        list(HALF),
        list(HALF),
        float("nan"),
        files,
    )


def _dense(task: DenseTask) -> Subject:
    return Subject(
        task.name,
        task.model,
        task.images,
        task.score,
        task.metric,
        task.agreement,
        None,
        task.mean,
        task.std,
        task.published,
    )


def traceable(subject: Subject) -> nn.Module:
    """The model in a form that ``torch.fx`` can trace, for tools that need it.

    Padding of models from TensorFlow depends on the input's shape: they are exported, and their
    layers restored.
    """
    if subject.name != "imagenet" and subject.name.removesuffix(VALIDATION) not in SHAPES:
        return subject.model
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(subject.model, (subject.images[:2],), dynamic_shapes=shapes)
    return to_modules(program.module())
