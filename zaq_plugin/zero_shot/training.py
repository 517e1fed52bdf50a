"""Training: the student learns from the loader's batches, and is judged, guarded and saved."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zaq_plugin.student.modes import copied_state
from zaq_plugin.zero_shot.judge import Judge
from zaq_plugin.zero_shot.learner import Learner
from zaq_plugin.zero_shot.loader import ZeroShotLoader
from zaq_plugin.zero_shot.result import (
    FinetuneResult,
    RunProgress,
    TrainingDiverged,
    save_checkpoint,
)

logger = logging.getLogger(__name__)


class Training:
    """The steps of one run; its learner's stand-ins are in the student until `close`.

    Args:
        loader: Prepared; its student is trained.
        judge: Has seen the states before training.
        result: Takes the curve.
        progress: Shows the steps.
        folder: Where to leave checkpoints, or None.
        on_step: Called after every step, or None.
    """

    def __init__(
        self,
        loader: ZeroShotLoader,
        judge: Judge,
        result: FinetuneResult,
        progress: RunProgress,
        folder: Path | None,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.loader, self.student, self.config = loader, loader.student, loader.config
        self.judge, self.result, self.progress = judge, result, progress
        self.folder, self.on_step = folder, on_step
        self.base: dict[str, Tensor] = {}
        """The student before training: what the learner's stand-ins are built on."""
        self.learner = Learner(self.student, judge.images[:2], self.config)

    def resume(self, saved: dict[str, Any]) -> None:
        """Go on where a checkpoint was left; the loader and the judge have done so already."""
        self.base = saved["base"]
        if saved["learner"] is not None:
            self.learner.load_state_dict(saved["learner"])

    def begin(self) -> None:
        """Leave a first checkpoint."""
        if self.folder is not None:
            self.learner.detach()
            self.base = copied_state(self.student)
            self.learner.attach()
            self._save()

    def run(self) -> None:
        """All steps, or those that are left.

        Raises:
            TrainingDiverged: if the loss or its gradient becomes NaN or infinite.
        """
        config, loader = self.config, self.loader
        for batch, targets in loader:
            loss = loader.loss(self.student(batch), targets)
            self._check_finite("loss", float(loss.detach()))
            self._check_finite("gradient's norm", self.learner.update(loss))
            step = loader.step
            last = step == config.steps
            if step % config.judging.every == 0 or last:
                self._judge(step)
            self.progress.show("train", step, config.steps, self._shown())
            if self.folder is not None and (
                (config.checkpoint_every and step % config.checkpoint_every == 0) or last
            ):
                self._save()
            if self.on_step is not None:
                self.on_step(step)
            if self._hopeless():
                logger.info("training stopped at step %d: no judgement found it better", step)
                break
        self.close()

    def close(self) -> None:
        """Take the learner's stand-ins out of the student."""
        self.learner.detach()

    def _hopeless(self) -> bool:
        """Whether the last ``patience`` judgements in training left the best state as it was."""
        patience, history = self.config.judging.patience, self.judge.history
        rounds = [v for v in history if v.label.startswith("step ")]
        if not patience or len(rounds) < patience:
            return False
        return not any(v.accepted for v in history[history.index(rounds[-patience]) :])

    def _shown(self) -> dict[str, float]:
        names = ("D_o", "KL", "D_f", "features", "loss")
        shown = {n: self.loader.losses[n] for n in names if n in self.loader.losses}
        if self.judge.best is not None:
            shown["agreement"] = self.judge.history[-1].agreement
        return shown

    def _judge(self, step: int) -> None:
        with self.learner.judged():
            verdict = self.judge.look(self.student, f"step {step}")
            layers = watch_layers(self.loader, self.judge.images[: self.config.batch_size])
        if self.learner.average:
            with self.learner.averaged(), self.learner.judged():
                self.judge.look(self.student, f"average at step {step}")
        terms = {**self.loader.losses, **layers, "divergence": verdict.divergence}
        self.result.curve.append({"step": step, **terms, "agreement": verdict.agreement})

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        self.close()
        best = self.judge.restore_best(self.student)
        terms = ", ".join(f"{name} {value:.4g}" for name, value in self.loader.losses.items())
        where = f"; the last checkpoint is in {self.folder}" if self.folder else ""
        raise TrainingDiverged(
            f"step {self.loader.step}: the {what} is {value} ({terms}). The student "
            f"holds the best state so far ({best.label}, agreement {best.agreement:.3f}){where}. "
            "Try a smaller student_lr, edge_lr and step_lr, or grad_clip=1."
        )

    def _save(self) -> None:
        assert self.folder is not None
        save_checkpoint(
            self.folder,
            {
                "config": self.config.to_json(),
                "base": self.base,
                "loader": self.loader.state_dict(),
                "judge": self.judge.state_dict(),
                "learner": self.learner.state_dict(),
                "curve": self.result.curve,
                "seconds": self.result.seconds,
            },
        )


@torch.no_grad()
def watch_layers(loader: ZeroShotLoader, images: Tensor) -> dict[str, float]:
    """D_f on ``images`` and the weight λ of every tap (ZAQ, section 3.2).

    Where D_f is part of the loss, λ is the loss's own. Elsewhere nothing else renews it, so this
    call counts as one of its epochs.

    Args:
        loader: Prepared; its models are run as they stand.
        images: (N, C, H, W) that nothing trains on.

    Returns:
        ``D_f``, and ``λ NAME`` by tap; empty if nothing is tapped.
    """
    if loader.taps is None:
        return {}
    total = loader.taps.on_images(images, renew=loader.config.losses.alpha <= 0)
    return {"D_f": total, **{f"λ {name}": value for name, value in loader.taps.shares.items()}}
