"""Images distilled from a model's own memory (ZeroQ, DeepInversion, Genie).

Noise is optimised until the model's BatchNorms see the statistics that they remember from training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.student.modes import frozen
from zaq_plugin.zero_shot.generator import Generator
from zaq_plugin.zero_shot.images import ImageFormat, ImageStatistics, dead_leaves
from zaq_plugin.zero_shot.statistics import BatchNormLoss

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class DistillOptions:
    """How images are distilled.

    Attributes:
        steps: Adam steps on each batch; with 0, images are what they start from.
        start: What pixels start from: ``leaves`` (see `dead_leaves`) or ``noise``.
        batch_size: Images that share their statistics.
        lr: Adam's learning rate on the pixels, relative to the spread of natural images in the
            model's own units; with a cosine schedule to zero.
        bn_weight: Weight of the BatchNorm-statistics loss.
        relative: Divide the statistics' differences by the remembered deviation.
        total_variation: Weight of the mean absolute difference of neighbouring pixels.
        l2: Weight of the mean squared pixel.
        class_weight: Weight of the cross-entropy towards a class drawn for each image, which makes
            the teacher sure of it (classifiers only).
        method: ``pixels`` optimises the images; ``generator`` optimises latents and a fresh
            generator together for each batch (Genie), with ``generator_lr`` and ``latent_lr``.
        swing: Jitter strided convolutions by a pixel or so (Genie's swing convolution).
        low_pass: Standard deviation, in pixels, of a Gaussian low-pass filter at the end; 0 for
            none (SynQ).
        flip: Mirror the batch at random in each step, so that images survive mirroring.
    """

    steps: int = 80
    start: str = "leaves"
    batch_size: int = 128
    lr: float = 0.1
    bn_weight: float = 1.0
    relative: bool = False
    total_variation: float = 0.0
    l2: float = 0.0
    class_weight: float = 0.0
    method: str = "pixels"
    generator_lr: float = 0.1
    latent_lr: float = 0.01
    swing: bool = False
    low_pass: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.method not in ("pixels", "generator"):
            raise ValueError(
                f"DistillOptions: method must be 'pixels' or 'generator'; got {self.method!r}."
            )
        if self.start not in ("leaves", "noise"):
            raise ValueError(
                f"DistillOptions: start must be 'leaves' or 'noise'; got {self.start!r}."
            )
        if self.steps < 0 or self.batch_size < 2:
            raise ValueError(
                "DistillOptions: steps must not be negative and batch_size at least 2 (statistics "
                f"need more than one image); got {self.steps} and {self.batch_size}."
            )


def distill_images(
    model: nn.Module,
    count: int,
    image_shape: ImageFormat | tuple[int, int, int],
    *,
    options: DistillOptions | None = None,
    statistics: ImageStatistics | None = None,
    rng: torch.Generator | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Images on which the model's BatchNorms see what they remember.

    Args:
        model: The float model with its BatchNorms; it is run in evaluation mode. Without BatchNorm
            what remains are the priors, the class term and the image statistics; with none of them
            either, images are what they start from, at once.
        count: Number of images; batches of ``options.batch_size``.
        image_shape: An `ImageFormat`, or (channels, height, width).
        statistics: The model's input normalisation, where ``image_shape`` does not say it.
        rng: CPU source of all noise.
        progress: Called with (step, steps, loss).

    Returns:
        (count, C, H, W) float32, in the model's normalisation, between black and white.
    """
    model, options = unwrapped(model), options or DistillOptions()
    if statistics is None:
        images = ImageFormat.of(image_shape)
    else:
        images = ImageFormat.of(image_shape, statistics.mean, statistics.std)
    rng = rng or torch.Generator().manual_seed(0)
    if device is None:
        first = next(model.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
    batches: list[Tensor] = []
    done = 0
    total = -(-count // options.batch_size) * options.steps
    with frozen(model):
        bn_loss = BatchNormLoss(model, relative=options.relative)
        while done < count:
            # A short last batch would have statistics of its own.
            job = _Job(model, bn_loss, images, options, rng, torch.device(device))

            def step_done(step: int, loss: float, start: int = len(batches)) -> None:
                if progress is not None:
                    progress(start * options.steps + step + 1, total, loss)

            batches.append(job.run(step_done))
            done += options.batch_size
    return torch.cat(batches)[:count]


def has_aim(options: DistillOptions, batch_norms: int) -> bool:
    """Whether anything draws pixels anywhere: BatchNorm statistics, a prior, or classes.

    Args:
        options: How images are distilled.
        batch_norms: How many BatchNorms the model has.
    """
    statistics = options.bn_weight if batch_norms else 0.0
    return max(statistics, options.total_variation, options.l2, options.class_weight) > 0


class _Job:
    """One batch."""

    def __init__(
        self,
        model: nn.Module,
        bn_loss: BatchNormLoss,
        images: ImageFormat,
        options: DistillOptions,
        rng: torch.Generator,
        device: torch.device,
    ) -> None:
        self.model, self.bn_loss, self.options = model, bn_loss, options
        statistics, self.rng = images.statistics, rng
        self.statistics = statistics
        shape = (options.batch_size, *images.shape)
        self.dtype = next((p.dtype for p in model.parameters()), torch.float32)
        self.classes: Tensor | None = None
        self.generator: Generator | None = None
        if options.method == "pixels":
            if options.start == "leaves":
                start = dead_leaves(options.batch_size, images.shape, rng).to(device)
            else:
                start = torch.randn(shape, generator=rng).to(device)
            start = start * statistics.scale(start) + statistics.shift(start)
            rate = options.lr * float(statistics.scale(start).mean())
            self.variables: list[dict[str, object]] = [
                {"params": [start.requires_grad_(True)], "lr": rate}
            ]
            self.pixels = start
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
                self.generator = Generator(images.shape, statistics=statistics)
            self.generator.to(device)
            self.latents = self.generator.noise(options.batch_size, rng, device)
            self.latents.requires_grad_(True)
            self.variables = [
                {"params": list(self.generator.parameters()), "lr": options.generator_lr},
                {"params": [self.latents], "lr": options.latent_lr},
            ]

    def images(self) -> Tensor:
        if self.generator is None:
            return self.statistics.clamp(self.pixels)
        return self.statistics.clamp(self.generator(self.latents))

    def run(self, step_done: Callable[[int, float], None]) -> Tensor:
        options = self.options
        optimizer = torch.optim.Adam(self.variables)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, options.steps))
        for step in range(options.steps if has_aim(options, len(self.bn_loss)) else 0):
            images = self.images()
            seen = images
            if options.flip and int(torch.randint(2, (1,), generator=self.rng)):
                seen = seen.flip(-1)
            with swinging(self.model, self.rng, options.swing), self.bn_loss.recording():
                logits = self.model(seen.to(self.dtype).clone())  # it may write into them
            loss = options.bn_weight * self.bn_loss.value().to(images) + self._priors(images)
            if options.class_weight > 0:
                loss = loss + options.class_weight * self._class_loss(logits)
            optimizer.zero_grad(set_to_none=True)
            if loss.requires_grad:
                loss.backward()
            optimizer.step()
            schedule.step()
            step_done(step, float(loss.detach()))
        with torch.no_grad():
            images = self.images()
            if options.low_pass > 0:
                images = low_pass(images, options.low_pass)
            return images.detach().float()

    def _priors(self, images: Tensor) -> Tensor:
        total = images.new_zeros(())
        if self.options.total_variation > 0:
            total = total + self.options.total_variation * total_variation(images)
        if self.options.l2 > 0:
            total = total + self.options.l2 * images.square().mean()
        return total

    def _class_loss(self, logits: object) -> Tensor:
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise ValueError(
                "DistillOptions.class_weight is for classifiers with logits (batch, classes); this "
                "model returns something else. Set class_weight=0."
            )
        if self.classes is None:
            drawn = torch.randint(logits.shape[1], (logits.shape[0],), generator=self.rng)
            self.classes = drawn.to(logits.device)
        return nn.functional.cross_entropy(logits, self.classes)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, vertical plus horizontal; a scalar."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    return down + across


def low_pass(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W) with reflected borders; sigma in pixels (SynQ)."""
    radius = max(1, min(round(3 * sigma), images.shape[-1] - 1, images.shape[-2] - 1))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = nn.functional.pad(images, (radius,) * 4, mode="reflect")
    row = kernel.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1)
    column = kernel.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)
    blurred = nn.functional.conv2d(padded, row, groups=channels)
    return nn.functional.conv2d(blurred, column, groups=channels)


@contextmanager
def swinging(model: nn.Module, rng: torch.Generator, active: bool = True) -> Iterator[None]:
    """Shift the input of every strided Conv2d by up to stride - 1 pixels at random (Genie).

    A strided convolution looks at some pixels more than at others; images distilled through it get
    a checkerboard. Works on convolution modules; operators of a graph stay as they are.
    """
    if not active:
        yield
        return

    def jitter(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        reach = max(module.stride) - 1  # type: ignore[arg-type]
        x = inputs[0]
        if min(x.shape[-2:]) <= reach:
            return inputs
        top, left = torch.randint(2 * reach + 1, (2,), generator=rng).tolist()
        padded = nn.functional.pad(x, (reach,) * 4, mode="reflect")
        return (padded[..., top : top + x.shape[-2], left : left + x.shape[-1]], *inputs[1:])

    handles = [
        module.register_forward_pre_hook(jitter)
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
