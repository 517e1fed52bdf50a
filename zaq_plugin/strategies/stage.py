"""What a strategy is made of: stages, and the work that they pass on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import calibrate
from zaq_plugin.ptq.host import SIMULATION
from zaq_plugin.pwlq import QuantSpec, UniformSpec
from zaq_plugin.strategies.request import Request
from zaq_plugin.student import twin
from zaq_plugin.student.assign import Override
from zaq_plugin.student.host import Host

Slot = Literal["before", "images", "weights", "activations", "after"]
Data = Literal["none", "synthetic", "real"]

SLOTS: tuple[Slot, ...] = ("before", "images", "weights", "activations", "after")
SINGLE = ("images", "weights", "activations")
"""Slots that hold one stage. The others add up."""
OUTPUT_MARGIN = 2.0
"""Room for the outputs of real images, one bit, where ranges are from made ones: logits of
CIFAR-10's training images reach 1.3 times as far as those of images made for ResNet-20."""


class Stage:
    """One step of a strategy.

    Lifecycle: all stages' `prepare`, in the order of the slots; the student is built from
    ``work.folded``, ``work.spec`` and ``work.observer``; all stages' `finish`, in the same order.

    Attributes:
        slot: When it runs.
        several_tensors: Whether it puts a weight together from several tensors, which no int8
            kernel multiplies by.
        replaces: Names of stages after quantization whose work it takes back and does itself.
        name: What it is called in a composition and in errors.
    """

    slot: ClassVar[Slot]
    several_tensors: ClassVar[bool] = False
    replaces: ClassVar[tuple[str, ...]] = ()
    name: str

    def prepare(self, work: Work) -> None:
        """Before the student exists."""

    def finish(self, work: Work) -> None:
        """On the student."""


class ImageStage(Stage):
    """Where calibration images come from.

    Attributes:
        data: ``synthetic`` or ``real``.
        recipe: Name of the recipe: strategies with the same one can share images.
    """

    slot = "images"
    data: ClassVar[Data]
    recipe: ClassVar[str]

    def prepare(self, work: Work) -> None:
        """Images are made when first asked for."""
        work.source = self

    def make(self, work: Work) -> Tensor:
        """(n, C, H, W) images in the model's normalisation."""
        raise NotImplementedError


@dataclass
class Work:
    """What the stages of one strategy share.

    Attributes:
        request: What was asked for.
        model: The float model as it came, with its BatchNorms; no stage changes it.
        folded: Its copy with BatchNorm folded, which stages before quantization may change.
        levels: ``uniform``, ``pwlq`` or another format's name, as in `Request`.
        spec: Grid of the weights.
        overrides: Layer name to its own grids; see `zaq_plugin.ptq.simulate`.
        observer: Of activation ranges.
        trains: Whether the strategy trains.
        calibrated: Set by a stage that knows the ranges without any images.
        source: Where images come from.
        host: Where the student is prepared.
        student: The student's model, once it exists.
        fixed_batch: The only batch size that the student takes, if there is one.
        notes: What a reader should know.
        stages: Wall time by stage, and of parts of stages.
        facts: What stages tell one another.
        moved: The stage that chose other levels than the nearest ones, if any did.
        trained: The stage that trained weights and biases, if any did.
    """

    request: Request
    model: nn.Module
    folded: nn.Module
    levels: str = "uniform"
    spec: QuantSpec = field(default_factory=UniformSpec)
    overrides: dict[str, Override] = field(default_factory=dict)
    observer: Callable[..., Any] = MinMaxObserver
    trains: bool = False
    calibrated: bool = False
    source: ImageStage | None = None
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    moved: str = ""
    trained: str = ""
    host: Host = SIMULATION
    fixed_batch: int | None = None
    _student: nn.Module | None = None
    _teacher: nn.Module | None = None
    _images: Tensor | None = None

    @property
    def student(self) -> nn.Module:
        """The student's model."""
        if self._student is None:
            raise ValueError("the student does not exist before all stages have prepared it")
        return self._student

    @student.setter
    def student(self, student: nn.Module) -> None:
        self._student = student
        self._teacher = twin(student)  # now, before anything moves its weights

    @property
    def teacher(self) -> nn.Module:
        """The student's twin: the float model's function, whatever became of the student."""
        if self._teacher is None:
            raise ValueError("the teacher does not exist before all stages have prepared it")
        return self._teacher

    @property
    def count(self) -> int:
        """How many synthetic images are made."""
        return self.request.count(trains=self.trains)

    @property
    def int8(self) -> bool:
        """Whether int8 kernels are to run the student."""
        return self.request.int8 or self.host.kernels == "int8"

    def refuse_after_training(self, what: str) -> None:
        """Refuse a stage that would undo or spoil what a stage before has trained.

        Raises:
            ValueError: With the way out.
        """
        if self.trained:
            raise ValueError(
                f"{what} compares with the float model, whose weights and biases "
                f"{self.trained!r} has trained away from; name {what!r} before it"
            )

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        first = next(self.model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def images(self) -> Tensor:
        """Calibration images, made when first asked for."""
        if self._images is None:
            if self.source is None:
                raise ValueError("this strategy has no images; add one of: real, distilled, noise")
            # Whoever asks may be in the middle of a forward pass without gradients.
            with self.timed(f"images ({self.source.name})"), torch.enable_grad():
                self._images = self.source.make(self).to(self.device)
        return self._images

    @property
    def images_made(self) -> Tensor | None:
        """The images, if anybody asked for them."""
        return self._images

    @property
    def data(self) -> Data:
        """What was used."""
        if self._images is None or self.source is None:
            return "none"
        return self.source.data

    def calibrate(self) -> None:
        """Ranges from the images; outputs get room where the images are made."""
        images = self.batches()
        synthetic = self.source is not None and self.source.data == "synthetic"
        calibrate(self.student, images, output_margin=OUTPUT_MARGIN if synthetic else 1)
        self.calibrated = True

    def batches(self) -> Iterator[Tensor]:
        """The calibration images, ``batch_size`` at a time, or as many as the student takes."""
        size = self.fixed_batch or self.request.batch_size
        for batch in self.images.split(size):
            if self.fixed_batch is None or len(batch) == size:
                yield batch

    def rng(self, purpose: int) -> torch.Generator:
        """A CPU source of its own for each purpose, from the request's seed."""
        return torch.Generator().manual_seed(self.request.seed * 7919 + purpose)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds wall time to a stage's account."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.stages[stage] = self.stages.get(stage, 0.0) + spent


@dataclass(frozen=True)
class Strategy:
    """A method: stages, and what a table says about it.

    Attributes:
        name: What users type.
        title: One line.
        paper: Citation.
        data: ``none`` uses no images, ``synthetic`` makes its own (or takes real ones where
            ``takes_images`` says so), ``real`` needs them.
        trains: Whether anything is learned by gradient descent.
        stages: What it does.
        takes_images: Whether ``Request.images`` are used where there are some.
        levels: ``uniform`` or ``pwlq``: what the paper uses.
        component: A part for compositions (``rq+equalise``), no method of its own.
    """

    name: str
    title: str
    paper: str
    data: Data
    trains: bool
    stages: tuple[Stage, ...]
    takes_images: bool = False
    levels: str = "uniform"
    component: bool = False

    @property
    def recipe(self) -> str | None:
        """Name of its recipe of synthetic images; None if it makes none."""
        for stage in self.stages:
            if isinstance(stage, ImageStage) and stage.data == "synthetic":
                return stage.recipe
        return None
