"""`ZeroShotConfig`: every setting of zero-shot fine-tuning, frozen, with three presets."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from zaq_plugin.zero_shot.presets import PRESETS

_CHOICES = {
    "loss": ("l1", "kl"),
    "generator_loss": ("l1", "kl"),
    "relation_norm": ("mean", "sum"),
    "optimizer": ("adam", "sgd"),
    "schedule": ("cosine", "constant"),
    "images": ("generator", "distilled", "mixed"),
    "distill_start": ("leaves", "noise"),
    "distill_method": ("pixels", "generator"),
}
_AT_LEAST_ONE = (
    "batch_size",
    "student_steps",
    "latent_dim",
    "generator_width",
    "calibration_images",
    "reconstruct_iterations",
    "reconstruct_batch_size",
    "reconstruct_copies",
    "validation_images",
    "validation_copies",
    "validate_every",
)
_NOT_NEGATIVE = (
    "steps",
    "warmup_steps",
    "alpha",
    "beta",
    "gamma",
    "feature_weight",
    "bn_weight",
    "margin",
    "diversity_weight",
    "generator_lr",
    "student_lr",
    "bias_lr",
    "step_lr",
    "edge_lr",
    "weight_decay",
    "grad_clip",
    "distilled_images",
    "distill_steps",
    "checkpoint_every",
    "low_pass",
    "total_variation",
    "class_weight",
    "reconstruct_scale_lr",
    "restart_below",
    "crossing",
    "latent_lr",
    "replay_batches",
    "patience",
    "shift",
)
_SHARES = (
    "lambda_decay",
    "lr_warmup",
    "ema_decay",
    "replay_share",
    "drop",
    "reconstruct_harden",
    "mixup",
    "momentum",
    "generated_share",
)


@dataclass(frozen=True)
class ZeroShotConfig:
    """Settings of the loader and of `zero_shot_finetune`; a misspelt one is an error.

    Attributes:
        seed: Fixes the whole run.
        steps: Student steps; also the loader's length. 0 leaves calibration and reconstruction.
        batch_size: Images per step.
        student_steps: Student steps per generator step (the paper's 5 to 1).

        loss: Student's distance on outputs: ``l1`` is D_o, ``kl`` is the teacher's divergence.
        alpha: Weight of D_f (channel relation maps) for student and generator.
        beta: Weight of L_a, the activation regulariser, for the generator.
        relation_norm: ``sum`` is the paper's norm of a relation map, ``mean`` divides it by C^2.
        lambda_decay: Decay of λ's moving average.
        feature_weight: Weight of the relative squared distance of the tapped features (student).
        taps: Patterns of tapped modules; None finds them.

        generator_loss: The generator's adversarial distance: ``l1`` or ``kl``.
        gamma: Weight of the adversarial terms in the generator's loss.
        margin: With a value m > 0 the generator is not pushed beyond a discrepancy of m (AdaDFQ's
            boundary between agreement and disagreement); 0 is the paper's unbounded game.
        bn_weight: Weight of the BatchNorm-statistics loss on the generator (GDFQ).
        diversity_weight: Weight of the diversity of a batch's features, for models without
            BatchNorm (patch similarity of ViTs).
        low_pass: Standard deviation in pixels of a Gaussian filter on all synthetic images (SynQ).
        latent_lr: With a value > 0, latents are optimised with the generator (Genie).
        swing: Jitter strided convolutions while images are made (Genie).
        latent_dim, generator_width, generator_lr: The generator and Adam's rate for it.
        warmup_steps: Generator steps on BatchNorm statistics before anything else.
        restart_below: The generator is restarted once the diversity of its images falls below this
            share of what it was after the warm-up; 0 never restarts.

        images: What the student sees: ``generator``, ``distilled`` images, or ``mixed``.
        generated_share: Of a mixed batch, the share that comes from the generator.
        distilled_images, distill_steps, distill_start, distill_lr: Distillation; see
            `DistillOptions`.
        distill_method, total_variation, class_weight: The same.
        mixup: Share of steps whose batch is mixed with itself in random proportions (the teacher
            answers for the mixture).
        flip: Mirror batches at random.
        shift: Translate batches by up to so many pixels.
        replay_batches: How many earlier generated batches are remembered.
        replay_share: Share of steps on a remembered batch.

        optimizer, student_lr, momentum, weight_decay, schedule, grad_clip: The student's training;
            ``grad_clip`` is the largest gradient norm, 0 for none.
        relative_lr: ``student_lr`` is a share of the mean distance of each weight's levels, so that
            one rate serves all widths; False takes it as it is.
        lr_warmup: Share of the steps over which all rates rise from zero.
        bias_lr: Rate of biases and other parameters that are no quantized weight, relative to
            ``student_lr``.
        step_lr: Rate of the activations' steps relative to their size (Adam); 0 keeps them.
        edge_lr: Rate of the weights' clips and breakpoints relative to their size; 0 keeps them.
        crossing: Share of the weights' largest step that the mean update is scaled to (AIT's
            threshold-crossing scale); 0 leaves updates alone.
        ema_decay: Decay of the student's moving average, which is judged beside the student; 0
            for none.

        calibration_images: How many synthetic images set the activation ranges.
        recalibrate: Whether ranges are set anew; False keeps what the student came with.
        reconstruct: Reconstruct block by block before training; see `ReconstructOptions` for
            reconstruct_iterations, reconstruct_batch_size, reconstruct_scale_lr,
            reconstruct_step_lr, reconstruct_rounding_lr, reconstruct_regulariser,
            reconstruct_harden (``harden_until`` there) and drop.
        reconstruct_copies: How many versions of each image reconstruction sees: the image, its
            mirror image, then random mixtures of both kinds.

        validation_images: Fixed synthetic images on which states are judged, never trained on.
        validation_copies: How many versions of each the judge sees, as with reconstruct_copies: a
            verdict on few images is mostly chance.
        validate_every: Steps between judgements.
        patience: Training ends after so many judgements in a row that found nothing better; 0 for
            never.
        checkpoint_every: Steps between checkpoints; 0 for none (needs a checkpoint folder).

    Raises:
        ValueError: for a value that makes no sense.
    """

    seed: int = 0
    steps: int = 200
    batch_size: int = 64
    student_steps: int = 5

    loss: str = "kl"
    alpha: float = 0.0
    beta: float = 0.0
    relation_norm: str = "mean"
    lambda_decay: float = 0.9
    feature_weight: float = 1.0
    taps: tuple[str, ...] | None = None

    generator_loss: str = "l1"
    gamma: float = 1.0
    margin: float = 0.0
    bn_weight: float = 1.0
    diversity_weight: float = 0.0
    low_pass: float = 0.0
    latent_lr: float = 0.0
    swing: bool = False
    latent_dim: int = 256
    generator_width: int = 64
    generator_lr: float = 1e-3
    warmup_steps: int = 60
    restart_below: float = 0.3

    images: str = "distilled"
    generated_share: float = 0.5
    distilled_images: int = 256
    distill_steps: int = 40
    distill_start: str = "leaves"
    distill_lr: float = 0.1
    distill_method: str = "pixels"
    total_variation: float = 0.0
    class_weight: float = 0.0
    mixup: float = 0.5
    flip: bool = True
    shift: int = 0
    replay_batches: int = 20
    replay_share: float = 0.25

    optimizer: str = "adam"
    student_lr: float = 5e-4
    relative_lr: bool = True
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    lr_warmup: float = 0.1
    grad_clip: float = 0.0
    bias_lr: float = 0.1
    step_lr: float = 1e-3
    edge_lr: float = 1e-3
    crossing: float = 0.0
    ema_decay: float = 0.98

    calibration_images: int = 256
    recalibrate: bool = True
    reconstruct: bool = True
    reconstruct_iterations: int = 300
    reconstruct_batch_size: int = 32
    reconstruct_copies: int = 4
    reconstruct_scale_lr: float = 1e-2
    reconstruct_step_lr: float = 1e-2
    reconstruct_rounding_lr: float = 6e-2
    reconstruct_regulariser: float = 1e-3
    reconstruct_harden: float = 0.9
    drop: float = 0.25

    validation_images: int = 128
    validation_copies: int = 4
    validate_every: int = 50
    patience: int = 1
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, choices))}; "
                    f"got {getattr(self, name)!r}."
                )
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}.")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1; got {getattr(self, name)}.")
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: BatchNorm needs a batch; got 1.")
        if self.taps is not None:
            object.__setattr__(self, "taps", tuple(self.taps))

    @property
    def uses_generator(self) -> bool:
        """Whether training draws images from a generator."""
        return self.images != "distilled"

    @property
    def uses_distilled(self) -> bool:
        """Whether images are distilled."""
        return self.images != "generator"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ZeroShotConfig:
        """``paper`` (the paper's losses and schedule), ``default`` or ``fast``, with changes.

        Raises:
            ValueError: for an unknown preset or setting.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; known are {', '.join(PRESETS)}.")
        return cls.from_dict({**PRESETS[name], **changes})

    def with_changes(self, **changes: Any) -> ZeroShotConfig:
        """A copy with other values; unknown names raise ValueError."""
        _refuse_unknown(changes)
        return replace(self, **changes)

    def to_json(self) -> str:
        """All settings as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ZeroShotConfig:
        """Read what `to_json` wrote; settings that are left out have their defaults.

        Raises:
            ValueError: if the text is no JSON object or holds an unknown setting.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"ZeroShotConfig.from_json: not valid JSON ({error}).") from error
        if not isinstance(values, dict):
            raise ValueError(
                f"ZeroShotConfig.from_json: expected a JSON object, got {type(values).__name__}."
            )
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ZeroShotConfig:
        """Build from a dictionary; see `from_json`."""
        _refuse_unknown(values)
        return cls(**values)


def _refuse_unknown(values: dict[str, Any]) -> None:
    known = [f.name for f in fields(ZeroShotConfig)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"ZeroShotConfig has no setting {', '.join(map(repr, unknown))}.{hint} Known are "
            f"{', '.join(known)}."
        )
