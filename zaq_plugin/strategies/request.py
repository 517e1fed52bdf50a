"""What a strategy is asked for, and what it hands back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zaq_plugin.image_counts import CALIBRATION_IMAGES, TRAINING_IMAGES
from zaq_plugin.ptq.plan import Depthwise
from zaq_plugin.pwlq.names import FORMATS, family
from zaq_plugin.report import Audit, LayerRecord
from zaq_plugin.student.assign import Override
from zaq_plugin.student.walk import MEMORY
from zaq_plugin.zero_shot.discrepancy import OutputAdapter, all_outputs
from zaq_plugin.zero_shot.images import ImageFormat

Granularity = Literal["channel", "tensor"]

LEVELS = ("auto", *sorted(map(family, FORMATS), reverse=True))
GRANULARITIES = ("channel", "tensor")


@dataclass(frozen=True)
class Request:
    """What every strategy is asked for; the strategies differ in how they do it.

    Attributes:
        weight_bits: STORED bits of a weight, 2 to 8: a PWLQ weight of so many stored bits has one
            MAC bit less.
        activation_bits: Width of the layers' inputs, 2 to 8; None leaves them float.
        input_bits: Width of the network's own input; None treats it like any other activation.
        levels: ``uniform``, ``pwlq`` or another format's name, see `zaq_plugin.pwlq.names`;
            ``auto`` is what the strategy's paper uses.
        granularity: Weights have a grid per output ``channel``, or one per ``tensor``.
        depthwise: ``int8`` leaves depthwise layers at 8 bits where narrow codes with their levels
            take more room; ``as-told`` does not.
        first_last: ``(weights, activations)`` of the first and the last layer.
        host: Where the student is prepared: ``simulated``, or another one of
            `zaq_plugin.student.host.host_names`, whose ``convert`` makes of it what kernels run.
        int8: Whether int8 kernels are to multiply by the weights though the host has none, as in a
            file exported from a simulated student: 8-bit weights are symmetric then.
        overrides: Layer name or pattern to its own ``(weights, activations)``, as a budget
            chooses them; None leaves a layer float.
        example_inputs: What the model is called with; the first is its image batch.
        mean, std: The model's input normalisation, pixels in 0..1.
        seed: Fixes everything that is drawn.
        images: (n, C, H, W) real calibration images, or None.
        synthetic: (n, C, H, W) images made already by `synthetic_images` of the same strategy or of
            one with the same ``recipe``, which would be made otherwise.
        synthetic_count: How many synthetic images are made; None makes as many as
            `zaq_plugin.image_counts` says, more for a strategy that trains.
        batch_size: Images at a time.
        memory: Bytes that the activations of all images may take while weights are rounded or
            biases corrected layer by layer; see `zaq_plugin.ptq.correct_bias`.
        adapter: From the model's output to a list of tensors, for models with several outputs.
        effort: Multiplies the steps of distillation, reconstruction and training.
        progress: Show a progress bar where something is trained.
        check: Whether a host's prepared model is compared with the float one on the example inputs.

    Raises:
        ValueError: For a value that makes no sense.
        TypeError: If a width is no integer, or images are no tensor.
    """

    weight_bits: int
    activation_bits: int | None
    input_bits: int | None = 8
    levels: str = "auto"
    example_inputs: tuple[Any, ...] = ()
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    seed: int = 0
    images: Tensor | None = None
    synthetic: Tensor | None = None
    granularity: Granularity = "channel"
    depthwise: Depthwise = "as-told"
    first_last: Override = None
    host: str = "simulated"
    int8: bool = False
    overrides: Mapping[str, Override] = field(default_factory=dict)
    synthetic_count: int | None = None
    batch_size: int = 64
    memory: int = MEMORY
    adapter: OutputAdapter = all_outputs
    effort: float = 1.0
    progress: bool = False
    check: bool = True

    def __post_init__(self) -> None:
        _check_bits("weight_bits", self.weight_bits)
        for name in ("activation_bits", "input_bits"):
            if vars(self)[name] is not None:
                _check_bits(name, vars(self)[name])
        for name, choices in (("levels", LEVELS), ("granularity", GRANULARITIES)):
            if vars(self)[name] not in choices:
                raise ValueError(
                    f"Request: {name} must be one of {', '.join(map(repr, choices))}; "
                    f"got {vars(self)[name]!r}."
                )
        example: Any = self.example_inputs
        listed = isinstance(example, tuple | list) and len(example) > 0
        if isinstance(example, Tensor):
            raise ValueError(
                "Request: example_inputs must be a tuple that starts with a batch of images; got "
                f"Tensor of shape {tuple(example.shape)}: write (images,), with the comma."
            )
        if not listed or not isinstance(example[0], Tensor):
            raise ValueError(
                "Request: example_inputs must be a tuple that starts with a batch of images; got "
                f"{type(self.example_inputs).__name__} {_short(self.example_inputs)}."
            )
        if self.example_inputs[0].dim() != 4:
            raise ValueError(
                "Request: example_inputs must start with images (n, C, H, W); got shape "
                f"{tuple(self.example_inputs[0].shape)}."
            )
        for name in ("images", "synthetic"):
            self._check_images(name)
        if self.count(trains=False) < 2 or self.batch_size < 2:
            raise ValueError(
                "Request: synthetic_count and batch_size must be at least 2; got "
                f"{self.count(trains=False)} and {self.batch_size}."
            )
        if self.memory < 0:
            raise ValueError(f"Request: memory must be a number of bytes; got {self.memory}.")
        if not self.effort > 0:
            raise ValueError(f"Request: effort must be positive; got {self.effort}.")

    def _check_images(self, name: str) -> None:
        images = vars(self)[name]
        if images is None:
            return
        if not isinstance(images, Tensor):
            kind = type(images).__name__
            ways = {"list": "torch.cat(images)", "ndarray": "torch.from_numpy(images)"}
            way_out = f": {ways[kind]} is one" if kind in ways else ""
            raise TypeError(f"Request: {name} must be a tensor; got {kind}{way_out}.")
        if images.dim() != 4 or images.shape[1:] != self.example_inputs[0].shape[1:]:
            raise ValueError(
                f"Request: {name} must be (n, {', '.join(map(str, self.image_shape))}) like the "
                f"example inputs; got shape {tuple(images.shape)}."
            )
        if len(images) < 2 or not bool(torch.isfinite(images).all()):
            what = "at least two images" if len(images) < 2 else "finite values"
            raise ValueError(f"Request: {name} must hold {what}.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.example_inputs[0].shape[1:]
        return int(channels), int(height), int(width)

    @property
    def image_format(self) -> ImageFormat:
        """Shape and normalisation of the model's images."""
        mean, std = (None if v is None else tuple(v) for v in (self.mean, self.std))
        return ImageFormat(self.image_shape, mean, std)

    def count(self, *, trains: bool) -> int:
        """How many synthetic images are made for a strategy that trains, or does not."""
        if self.synthetic_count is not None:
            return self.synthetic_count
        return TRAINING_IMAGES if trains else CALIBRATION_IMAGES

    def steps(self, count: int) -> int:
        """So many steps at this effort, at least one."""
        return max(1, round(count * self.effort))


@dataclass(repr=False)
class Applied:
    """What a strategy did.

    Attributes:
        model: The student: BatchNorm folded, weights and activations fake-quantized, calibrated, in
            evaluation mode; the host's ``convert`` takes it.
        strategy: Its name, as asked for.
        seconds: Wall time of everything, images included.
        notes: What a reader of a table should know.
        layers: One record per weight: what was quantized, how, and what was not and why.
        data: What the ranges came from: ``none``, ``synthetic`` or ``real``.
        levels: ``uniform``, ``pwlq`` or another format's name: what was used.
        images: The synthetic images that were made or used, or None.
        stages: Wall time of each stage; ``zero-shot (reconstruction)`` and the like are parts of
            ``zero-shot``.
        host: Where the student was prepared.
        fixed_batch: The only batch size that it takes, where the host could not do better.
        image_count: How many images it was calibrated on.
    """

    model: nn.Module
    strategy: str
    seconds: float
    notes: list[str]
    layers: list[LayerRecord]
    data: str = "none"
    levels: str = "uniform"
    images: Tensor | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    host: str = "simulated"
    fixed_batch: int | None = None
    image_count: int = 0

    def __repr__(self) -> str:
        """What was done, in a few lines; `layers` has each layer, ``model`` the student."""
        audit = Audit(self.layers)
        inputs = dict.fromkeys(r.activation or "float" for r in audit.quantized)
        images = f"{self.image_count} {'synthetic' if self.data == 'synthetic' else 'given'}"
        lines = [
            f"{self.strategy}, {self.host}: {len(audit.quantized)} of {len(audit)} layers of "
            f"{type(self.model).__name__} quantized",
            f"  weights      {self.levels}, {_bits(audit.mac_bits)} MAC / "
            f"{_bits(audit.stored_bits)} stored bits",
            f"  activations  {', '.join(inputs) or 'float'}",
            f"  images       {'none' if self.data == 'none' else images}",
            f"  seconds      {self.seconds:.1f}",
            *(f"  note         {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _check_bits(name: str, bits: object) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool):
        raise TypeError(f"Request: {name} must be an int from 2 to 8; got {bits!r}.")
    if not 2 <= bits <= 8:
        raise ValueError(f"Request: {name} must be from 2 to 8; got {bits}.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
