"""The presets of `ZeroShotConfig`: what each changes."""

from __future__ import annotations

from typing import Any

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
