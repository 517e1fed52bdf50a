"""Training: the student learns from the loader's batches, and is judged, guarded and saved.

What a run gives back, and what it leaves to be resumed, are here, too.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zaq_plugin.files import write_whole
from zaq_plugin.progress import RunProgress
from zaq_plugin.reconstruction import BlockResult
from zaq_plugin.student.modes import copied_state
from zaq_plugin.zero_shot.feedback import Feedback
from zaq_plugin.zero_shot.judge import Judge, Verdict
from zaq_plugin.zero_shot.learner import Learner
from zaq_plugin.zero_shot.loader import ZeroShotLoader

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the student holds the best state seen before."""


@dataclass
class FinetuneResult:
    """What happened.

    Attributes:
        verdicts: The judge's history; the first is the calibrated, untrained state.
        best: The state that the student holds now.
        blocks: What reconstruction did, block by block.
        curve: Terms of the loss at every judged step, with ``step``, the judge's divergence and
            agreement, D_f on its images, and ``λ NAME`` for every tap.
        layer_weights: λ by tap at the end: the more, the further student and teacher differ there.
        restarts: Steps at which the generator was restarted.
        seconds: Wall time by stage.
        examples: Some of the synthetic images, (n, C, H, W).
    """

    verdicts: list[Verdict] = field(default_factory=list)
    best: Verdict | None = None
    blocks: list[BlockResult] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    layer_weights: dict[str, float] = field(default_factory=dict)
    restarts: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    examples: Tensor | None = None

    @property
    def start(self) -> Verdict:
        """The untrained state."""
        return self.verdicts[0]

    @property
    def improved(self) -> bool:
        """Whether anything better than the untrained state was found."""
        return self.best is not None and self.best.label != self.start.label


class Training:
    """The steps of one run; its learner's stand-ins are in the student until `close`.

    Args:
        loader: Prepared; its student is trained.
        feedback: The loader's, which watches the layers.
        judge: Has seen the states before training.
        result: Takes the curve.
        progress: Shows the steps.
        folder: Where to leave checkpoints, or None.
        on_step: Called after every step, or None.
    """

    def __init__(
        self,
        loader: ZeroShotLoader,
        feedback: Feedback,
        judge: Judge,
        result: FinetuneResult,
        progress: RunProgress,
        folder: Path | None,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.loader, self.student, self.config = loader, loader.student, loader.config
        self.feedback = feedback
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
            layers = self.feedback.watch(self.judge.images[: self.config.batch_size])
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


NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write a state (tensors, numbers, strings, lists, dicts) to ``folder/checkpoint.pt``.

    A kill leaves the checkpoint before it.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return write_whole(folder / NAME, buffer.getvalue())


def load_checkpoint(folder: Path, config: str, device: torch.device | str) -> dict[str, Any] | None:
    """Read a folder's checkpoint, or None if there is none.

    Raises:
        ValueError: if it was written with another config, or is no checkpoint.
    """
    path = folder / NAME
    if not path.exists():
        return None
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict) or "config" not in state:
        raise ValueError(f"{path} is no checkpoint of zero-shot fine-tuning; delete it or move it.")
    if json.loads(state["config"]) != json.loads(config):
        changed = _differences(state["config"], config)
        raise ValueError(
            f"{path} belongs to a run with other settings ({changed}); resume with those, or give "
            "another checkpoint folder."
        )
    return state


def _differences(saved: str, present: str) -> str:
    old, new = json.loads(saved), json.loads(present)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name}: {old.get(name)!r}, now {new.get(name)!r}" for name in names)
