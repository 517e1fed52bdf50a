"""`ZeroShotConfig`: all settings of zero-shot fine-tuning, frozen, in parts; three presets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from zaq_plugin.errors import did_you_mean
from zaq_plugin.pwlq.json_spec import json_object
from zaq_plugin.zero_shot.config_parts import (
    FLAT,
    PARTS,
    CalibrationSettings,
    DistillSettings,
    GeneratorSettings,
    JudgeSettings,
    LossSettings,
    Part,
    ReconstructSettings,
    SourceSettings,
    TrainingSettings,
    check_settings,
    setting,
)

PRESETS: dict[str, dict[str, Any]] = {
    # ZAQ, section 3: alternating L1 games on outputs and channel relation maps, nothing else.
    "paper": {
        "loss": "l1",
        "alpha": 0.1,
        "beta": 0.1,
        "relation_norm": "sum",
        "feature_weight": 0.0,
        "bn_weight": 0.0,
        "images": "generator",
        "generator_loss": "l1",
        "warmup_steps": 0,
        "restart_below": 0.0,
        "mixup": 0.0,
        "flip": False,
        "replay_share": 0.0,
        "replay_batches": 0,
        "optimizer": "sgd",
        "student_lr": 0.01,
        "relative_lr": False,
        "bias_lr": 1.0,
        "lr_warmup": 0.0,
        "step_lr": 0.0,
        "edge_lr": 0.0,
        "grad_clip": 0.0,
        "ema_decay": 0.0,
        "reconstruct": False,
        "patience": 0,
    },
    "default": {},
    # Images that cost nothing, and less of everything.
    "fast": {
        "steps": 100,
        "distill_steps": 0,
        "reconstruct_iterations": 100,
    },
}


@dataclass(frozen=True, init=False)
class ZeroShotConfig:
    """Settings of the loader and of `zero_shot_finetune`; a misspelt one is an error.

    Settings may be given, and read, by part (``training=TrainingSettings(lr=1e-3)``,
    ``config.training.lr``) or flat (``student_lr=1e-3``, ``config.student_lr``), mixed as you
    like: a flat one changes its part. Files and presets hold flat names.

    Attributes:
        seed: Fixes the whole run.
        steps: Student steps; also the loader's length. 0 leaves calibration and reconstruction.
        batch_size: Images per step.
        student_steps: Student steps per generator step (the paper's 5 to 1).
        checkpoint_every: Steps between checkpoints; 0 for none (needs a checkpoint folder).
        losses: What student and teacher are compared by.
        generator: The generator, and what it is trained for.
        source: What the student sees.
        distillation: How images are distilled.
        training: The student's training.
        calibration: How activation ranges are set.
        reconstruction: Block by block, before training.
        judging: How states are judged.

    Raises:
        ValueError: for a value that makes no sense, or an unknown setting.
        TypeError: for a part that is none.
    """

    seed: int = 0
    steps: int = setting(200, low=0)
    batch_size: int = setting(64, low=1)
    student_steps: int = setting(5, low=1)
    checkpoint_every: int = setting(0, low=0)
    losses: LossSettings = field(default_factory=LossSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    source: SourceSettings = field(default_factory=SourceSettings)
    distillation: DistillSettings = field(default_factory=DistillSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    reconstruction: ReconstructSettings = field(default_factory=ReconstructSettings)
    judging: JudgeSettings = field(default_factory=JudgeSettings)

    def __init__(self, **settings: Any) -> None:
        """Takes parts and flat settings, all by name."""
        _refuse_unknown(settings)
        changes: dict[str, dict[str, Any]] = {name: {} for name in PARTS}
        for name in settings.keys() & FLAT.keys():
            part, own = FLAT[name]
            changes[part][own] = settings[name]
        for item in fields(self):
            if item.name not in PARTS:
                object.__setattr__(self, item.name, settings.get(item.name, item.default))
        for name, flat in changes.items():
            part_settings = _as_part(name, settings.get(name))
            changed = replace(part_settings, **flat) if flat else part_settings  # type: ignore[type-var]
            object.__setattr__(self, name, changed)
        check_settings(self)
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: BatchNorm needs a batch; got 1.")

    def __getattr__(self, name: str) -> Any:
        """A setting by its flat name."""
        if name in FLAT:
            part, own = FLAT[name]
            return vars(vars(self)[part])[own]
        hint = did_you_mean(name, [*_OWN, *FLAT])
        raise AttributeError(f"ZeroShotConfig has no setting {name!r}.{hint}")

    @property
    def uses_generator(self) -> bool:
        """Whether training draws images from a generator."""
        return self.source.kind != "distilled"

    @property
    def uses_distilled(self) -> bool:
        """Whether images are distilled."""
        return self.source.kind != "generator"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ZeroShotConfig:
        """``paper`` (the paper's losses and schedule), ``default`` or ``fast``, with changes.

        Raises:
            ValueError: for an unknown preset or setting.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; known are {', '.join(PRESETS)}.")
        return cls(**PRESETS[name]).with_changes(**changes)

    def with_changes(self, **changes: Any) -> ZeroShotConfig:
        """A copy with other values, parts or flat ones; unknown names raise ValueError."""
        return ZeroShotConfig(**{name: vars(self)[name] for name in _OWN} | changes)

    def to_dict(self) -> dict[str, Any]:
        """All settings by their flat names."""
        own = {name: vars(self)[name] for name in _OWN if name not in PARTS}
        return own | {flat: vars(vars(self)[part])[name] for flat, (part, name) in FLAT.items()}

    def to_json(self) -> str:
        """All settings as one JSON object, by their flat names."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> ZeroShotConfig:
        """Read what `to_json` wrote; settings that are left out have their defaults.

        Raises:
            ValueError: if the text is no JSON object or holds an unknown setting.
        """
        return cls.from_dict(json_object(text, "ZeroShotConfig.from_json"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ZeroShotConfig:
        """Build from flat settings, from parts, or from parts that are dictionaries."""
        return cls(**values)


_OWN = tuple(ZeroShotConfig.__dataclass_fields__)


def _as_part(name: str, value: Any) -> Part:
    kind = PARTS[name]
    if value is None:
        return kind()
    if isinstance(value, Mapping):
        settings = kind().__dict__
        wrong = [key for key in value if key not in settings]
        if wrong:
            raise ValueError(
                f"{name} has no setting {wrong[0]!r}; known are {', '.join(settings)}."
            )
        return kind(**value)
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} must be {kind.__name__}(...) or a dictionary of its settings; got {value!r}."
        )
    return value


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    names = [*_OWN, *FLAT]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(
            f"ZeroShotConfig has no setting {', '.join(map(repr, unknown))}."
            f"{did_you_mean(unknown[0], names)} Known are {', '.join(names)}."
        )
