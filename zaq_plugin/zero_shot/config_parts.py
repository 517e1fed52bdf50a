"""The parts of `ZeroShotConfig`, each frozen and each refusing nonsense at once.

A setting has a short name inside its part (``config.training.lr``) and a flat one in the whole
(``student_lr``), which keyword arguments, presets and files use, and errors name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from zaq_plugin.reconstruction import ReconstructOptions
from zaq_plugin.zero_shot.distill import DistillOptions


def setting(
    default: Any,
    flat: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field with its flat name and what it may be.

    Args:
        default: its value when nobody says anything.
        flat: its name in the whole; that of the field by default.
        low, high: what it may be, both included.
        choices: what a text may be.
    """
    metadata = {"flat": flat, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


def check_settings(part: Any) -> None:
    """Refuses values of a dataclass of settings that make no sense.

    Raises:
        ValueError: names the setting, by its flat name, and its value.
    """
    for item in fields(part):
        value, meta = vars(part)[item.name], item.metadata
        name = meta.get("flat") or item.name
        if meta.get("choices") and value not in meta["choices"]:
            listed = ", ".join(map(repr, meta["choices"]))
            raise ValueError(f"{name} must be one of {listed}; got {value!r}.")
        low, high = meta.get("low"), meta.get("high")
        if high is not None and not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}; got {value}.")
        if low is not None and not value >= low:
            words = "must not be negative" if low == 0 else f"must be at least {low}"
            raise ValueError(f"{name} {words}; got {value}.")


class Part:
    """A frozen dataclass of settings, checked when it is made."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class LossSettings(Part):
    """What student and teacher are compared by.

    Attributes:
        output: ``loss``. Student's distance on outputs: ``l1`` is D_o, ``kl`` is the teacher's
            divergence.
        alpha: Weight of D_f (channel relation maps) for student and generator.
        beta: Weight of L_a, the activation regulariser, for the generator.
        relation_norm: ``sum`` is the paper's norm of a relation map, ``mean`` divides it by C^2.
        lambda_decay: Decay of λ's moving average.
        feature_weight: Weight of the relative squared distance of the tapped features (student).
        taps: Patterns of tapped modules; None finds them.
    """

    output: str = setting("kl", "loss", choices=("l1", "kl"))
    alpha: float = setting(0.0, low=0)
    beta: float = setting(0.0, low=0)
    relation_norm: str = setting("mean", choices=("mean", "sum"))
    lambda_decay: float = setting(0.9, low=0, high=1)
    feature_weight: float = setting(1.0, low=0)
    taps: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.taps is not None:
            object.__setattr__(self, "taps", tuple(self.taps))


@dataclass(frozen=True)
class GeneratorSettings(Part):
    """The generator, and what it is trained for.

    Attributes:
        loss: ``generator_loss``. Its adversarial distance: ``l1`` or ``kl``.
        gamma: Weight of the adversarial terms in its loss.
        margin: With a value m > 0 the generator is not pushed beyond a discrepancy of m (AdaDFQ's
            boundary between agreement and disagreement); 0 is the paper's unbounded game.
        bn_weight: Weight of the BatchNorm-statistics loss (GDFQ).
        diversity_weight: Weight of the diversity of a batch's features, for models without
            BatchNorm (patch similarity of ViTs).
        latent_dim: Numbers that an image is made from.
        latent_lr: With a value > 0, latents are optimised with the generator (Genie).
        width: ``generator_width``. Its channels.
        lr: ``generator_lr``. Adam's rate for it.
        warmup_steps: Its steps on BatchNorm statistics before anything else.
        restart_below: It is restarted once the diversity of its images falls below this share of
            what it was after the warm-up; 0 never restarts.
    """

    loss: str = setting("l1", "generator_loss", choices=("l1", "kl"))
    gamma: float = setting(1.0, low=0)
    margin: float = setting(0.0, low=0)
    bn_weight: float = setting(1.0, low=0)
    diversity_weight: float = setting(0.0, low=0)
    latent_dim: int = setting(256, low=1)
    latent_lr: float = setting(0.0, low=0)
    width: int = setting(64, "generator_width", low=1)
    lr: float = setting(1e-3, "generator_lr", low=0)
    warmup_steps: int = setting(60, low=0)
    restart_below: float = setting(0.3, low=0)


@dataclass(frozen=True)
class SourceSettings(Part):
    """What the student sees.

    Attributes:
        kind: ``images``. ``generator``, ``distilled`` images, or ``mixed``.
        generated_share: Of a mixed batch, the share that comes from the generator.
        low_pass: Standard deviation in pixels of a Gaussian filter on all synthetic images (SynQ).
        swing: Jitter strided convolutions while images are made (Genie).
        mixup: Share of steps whose batch is mixed with itself in random proportions (the teacher
            answers for the mixture).
        flip: Mirror batches at random.
        shift: Translate batches by up to so many pixels.
        replay_batches: How many earlier generated batches are remembered.
        replay_share: Share of steps on a remembered batch.
    """

    kind: str = setting("distilled", "images", choices=("generator", "distilled", "mixed"))
    generated_share: float = setting(0.5, low=0, high=1)
    low_pass: float = setting(0.0, low=0)
    swing: bool = False
    mixup: float = setting(0.5, low=0, high=1)
    flip: bool = True
    shift: int = setting(0, low=0)
    replay_batches: int = setting(20, low=0)
    replay_share: float = setting(0.25, low=0, high=1)


@dataclass(frozen=True)
class DistillSettings(Part):
    """How images are distilled; see `DistillOptions`.

    Attributes:
        images: ``distilled_images``. How many.
        steps, start, lr, method: ``distill_steps``, ``distill_start``, ``distill_lr``,
            ``distill_method``. As in `DistillOptions`.
        total_variation, class_weight: As there.
    """

    images: int = setting(256, "distilled_images", low=0)
    steps: int = setting(40, "distill_steps", low=0)
    start: str = setting("leaves", "distill_start", choices=("leaves", "noise"))
    lr: float = setting(0.1, "distill_lr", low=0)
    method: str = setting("pixels", "distill_method", choices=("pixels", "generator"))
    total_variation: float = setting(0.0, low=0)
    class_weight: float = setting(0.0, low=0)

    def options(self, source: SourceSettings, batch_size: int) -> DistillOptions:
        """For `distill_images`.

        Args:
            source: What holds for all synthetic images.
            batch_size: Images that share their statistics.
        """
        return DistillOptions(
            steps=self.steps,
            start=self.start,
            batch_size=batch_size,
            lr=self.lr,
            method=self.method,
            total_variation=self.total_variation,
            class_weight=self.class_weight,
            swing=source.swing,
            low_pass=source.low_pass,
        )


@dataclass(frozen=True)
class TrainingSettings(Part):
    """The student's training.

    Attributes:
        optimizer, momentum, weight_decay, schedule: As their names say.
        lr: ``student_lr``. Rate of the weights.
        relative_lr: ``lr`` is a share of the mean distance of each weight's levels, so that one
            rate serves all widths; False takes it as it is.
        warmup: ``lr_warmup``. Share of the steps over which all rates rise from zero.
        grad_clip: The largest gradient norm, 0 for none.
        bias_lr: Rate of biases and other parameters that are no quantized weight, relative to
            ``lr``.
        step_lr: Rate of the activations' steps relative to their size (Adam); 0 keeps them.
        edge_lr: Rate of the weights' clips and breakpoints relative to their size; 0 keeps them.
        crossing: Share of the weights' largest step that the mean update is scaled to (AIT's
            threshold-crossing scale); 0 leaves updates alone.
        ema_decay: Decay of the student's moving average, which is judged beside the student; 0
            for none.
    """

    optimizer: str = setting("adam", choices=("adam", "sgd"))
    lr: float = setting(5e-4, "student_lr", low=0)
    relative_lr: bool = True
    momentum: float = setting(0.9, low=0, high=1)
    weight_decay: float = setting(0.0, low=0)
    schedule: str = setting("cosine", choices=("cosine", "constant"))
    warmup: float = setting(0.1, "lr_warmup", low=0, high=1)
    grad_clip: float = setting(0.0, low=0)
    bias_lr: float = setting(0.1, low=0)
    step_lr: float = setting(1e-3, low=0)
    edge_lr: float = setting(1e-3, low=0)
    crossing: float = setting(0.0, low=0)
    ema_decay: float = setting(0.98, low=0, high=1)


@dataclass(frozen=True)
class CalibrationSettings(Part):
    """How activation ranges are set.

    Attributes:
        images: ``calibration_images``. How many synthetic images set them.
        renew: ``recalibrate``. Whether they are set anew; False keeps what the student came with.
    """

    images: int = setting(256, "calibration_images", low=1)
    renew: bool = setting(True, "recalibrate")


@dataclass(frozen=True)
class ReconstructSettings(Part):
    """Block by block reconstruction before training; flat names begin with ``reconstruct_``.

    Attributes:
        enabled: ``reconstruct``. Whether it is done.
        iterations, batch_size, scale_lr, step_lr, rounding_lr, regulariser: As in
            `ReconstructOptions`.
        harden_until: ``reconstruct_harden``. As there.
        drop: ``drop``. As there.
        copies: How many versions of each image it sees: the image, its mirror image, then random
            mixtures of both kinds.
    """

    enabled: bool = setting(True, "reconstruct")
    iterations: int = setting(300, "reconstruct_iterations", low=1)
    batch_size: int = setting(32, "reconstruct_batch_size", low=1)
    copies: int = setting(4, "reconstruct_copies", low=1)
    scale_lr: float = setting(1e-2, "reconstruct_scale_lr", low=0)
    step_lr: float = setting(1e-2, "reconstruct_step_lr", low=0)
    rounding_lr: float = setting(6e-2, "reconstruct_rounding_lr", low=0)
    regulariser: float = setting(1e-3, "reconstruct_regulariser", low=0)
    harden_until: float = setting(0.9, "reconstruct_harden", low=0, high=1)
    drop: float = setting(0.25, low=0, high=1)

    def options(self) -> ReconstructOptions:
        """For `reconstruct`."""
        return ReconstructOptions(
            iterations=self.iterations,
            batch_size=self.batch_size,
            rounding_lr=self.rounding_lr,
            step_lr=self.step_lr,
            scale_lr=self.scale_lr,
            regulariser=self.regulariser,
            drop=self.drop,
            harden_until=self.harden_until,
        )


@dataclass(frozen=True)
class JudgeSettings(Part):
    """How states are judged, on images that are never trained on.

    Attributes:
        images: ``validation_images``. Fixed synthetic images.
        copies: ``validation_copies``. How many versions of each the judge sees: a verdict on few
            images is mostly chance.
        every: ``validate_every``. Steps between judgements.
        patience: Training ends after so many judgements in a row that found nothing better; 0 for
            never.
    """

    images: int = setting(128, "validation_images", low=1)
    copies: int = setting(4, "validation_copies", low=1)
    every: int = setting(50, "validate_every", low=1)
    patience: int = setting(1, low=0)


PARTS: dict[str, type[Part]] = {
    "losses": LossSettings,
    "generator": GeneratorSettings,
    "source": SourceSettings,
    "distillation": DistillSettings,
    "training": TrainingSettings,
    "calibration": CalibrationSettings,
    "reconstruction": ReconstructSettings,
    "judging": JudgeSettings,
}
"""Name of a part to its class."""

FLAT: dict[str, tuple[str, str]] = {
    item.metadata.get("flat") or item.name: (name, item.name)
    for name, part in PARTS.items()
    for item in fields(part)  # type: ignore[arg-type]
}
"""Flat name to part and name inside it."""
