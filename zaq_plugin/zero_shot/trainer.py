"""A run of zero-shot fine-tuning: its stages, its guards, its checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zaq_plugin.student.fake_quantizers import set_switches
from zaq_plugin.student.modes import (
    check_graph_mode,
    copied_state,
    freeze_batch_norm,
    to_evaluation,
)
from zaq_plugin.zero_shot.alternatives import Alternative, states_of
from zaq_plugin.zero_shot.checkpoint import load_checkpoint, save_checkpoint
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.judge import Judge
from zaq_plugin.zero_shot.learner import Learner
from zaq_plugin.zero_shot.loader import ZeroShotLoader
from zaq_plugin.zero_shot.preparation import Preparation, judge_of, timed
from zaq_plugin.zero_shot.progress import RunProgress
from zaq_plugin.zero_shot.result import FinetuneResult, TrainingDiverged
from zaq_plugin.zero_shot.watch import watch_layers

logger = logging.getLogger(__name__)


class Run:
    """One run's parts and stages; see `zero_shot_finetune`."""

    def __init__(
        self,
        student: nn.Module,
        config: ZeroShotConfig,
        correct: Callable[[nn.Module, Sequence[Tensor]], object] | None,
        alternatives: Mapping[str, Alternative] | None,
        folder: str | Path | None,
        show: bool,
        on_step: Callable[[int], None] | None,
        loader_args: dict[str, Any],
    ) -> None:
        check_graph_mode(student)
        self.student, self.config, self.correct = student, config, correct
        self.alternatives, self.on_step = alternatives or {}, on_step
        self.folder = None if folder is None else Path(folder)
        self.loader = ZeroShotLoader(student, config=config, **loader_args)
        self.progress = RunProgress(show)
        self.result = FinetuneResult()
        self.learner: Learner | None = None
        self.judge: Judge | None = None
        # Work on a graph's or model's own mode, with BatchNorm frozen: dropout would be noise.
        to_evaluation(student)
        freeze_batch_norm(student)

    def go(self, images: Tensor | None) -> FinetuneResult:
        """All stages, or those that a checkpoint leaves; the student holds the best state then.

        Args:
            images: (N, C, H, W) in place of distilled ones.
        """
        saved = None
        if self.folder is not None:
            saved = load_checkpoint(self.folder, self.config.to_json(), self.loader.device)
        if saved is None:
            stages = Preparation(
                self.student, self.loader, self.correct, self.alternatives, self.progress.show,
                self.result,
            )  # fmt: skip
            self.judge = stages.go(images)
        else:
            self._resume(saved)
        if self.config.steps:
            timed(self.result.seconds, "training", lambda: self._train(saved))
        return self._hand_over()

    def close(self) -> None:
        """Take hooks and stand-ins out of the models."""
        if self.learner is not None:
            self.learner.detach()
        self.loader.close()

    # ---- training --------------------------------------------------------------------------------

    def _train(self, saved: dict[str, Any] | None) -> None:
        config, loader = self.config, self.loader
        assert self.judge is not None
        self.learner = Learner(self.student, self.judge.images[:2], config)
        if saved is not None and saved["learner"] is not None:
            self.learner.load_state_dict(saved["learner"])
        elif self.folder is not None:
            self._save()
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
        self.learner.detach()

    def _hopeless(self) -> bool:
        """Whether the last ``patience`` judgements in training left the best state as it was."""
        patience = self.config.judging.patience
        history = self.judge.history if self.judge is not None else []
        rounds = [v for v in history if v.label.startswith("step ")]
        if not patience or len(rounds) < patience:
            return False
        return not any(v.accepted for v in history[history.index(rounds[-patience]) :])

    def _shown(self) -> dict[str, float]:
        names = ("D_o", "KL", "D_f", "features", "loss")
        shown = {n: self.loader.losses[n] for n in names if n in self.loader.losses}
        if self.judge is not None and self.judge.best is not None:
            shown["agreement"] = self.judge.history[-1].agreement
        return shown

    def _judge(self, step: int) -> None:
        assert self.judge is not None
        assert self.learner is not None
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
        assert self.learner is not None
        assert self.judge is not None
        self.learner.detach()
        best = self.judge.restore_best(self.student)
        terms = ", ".join(f"{name} {value:.4g}" for name, value in self.loader.losses.items())
        where = f"; the last checkpoint is in {self.folder}" if self.folder else ""
        raise TrainingDiverged(
            f"step {self.loader.step}: the {what} is {value} ({terms}). The student "
            f"holds the best state so far ({best.label}, agreement {best.agreement:.3f}){where}. "
            "Try a smaller student_lr, edge_lr and step_lr, or grad_clip=1."
        )

    # ---- checkpoints -----------------------------------------------------------------------------

    def _save(self) -> None:
        assert self.folder is not None
        assert self.judge is not None
        assert self.learner is not None
        learned = self.learner.state_dict()
        base = self._base
        save_checkpoint(
            self.folder,
            {
                "config": self.config.to_json(),
                "base": base,
                "loader": self.loader.state_dict(),
                "judge": self.judge.state_dict(),
                "learner": learned,
                "curve": self.result.curve,
                "seconds": self.result.seconds,
            },
        )

    @property
    def _base(self) -> dict[str, Tensor]:
        """The student before training: what the learner's stand-ins were built on."""
        if not hasattr(self, "_kept_base"):
            assert self.learner is not None
            self.learner.detach()
            self._kept_base = copied_state(self.student)
            self.learner.attach()
        return self._kept_base

    def _resume(self, saved: dict[str, Any]) -> None:
        set_switches(self.student, observe=False, quantize=True)
        if self.correct is not None:  # which adds to the student what the state below fills
            self.student.load_state_dict(saved["base"], strict=False)
            self.correct(self.student, [saved["judge"]["images"][:2]])
        if self.alternatives:  # these, too
            states_of(self.student, self.alternatives, [saved["judge"]["images"][:2]])
        self.student.load_state_dict(saved["base"])
        self._kept_base = saved["base"]
        set_switches(self.student, observe=False, quantize=True)
        self.loader.load_state_dict(saved["loader"])
        self.judge = judge_of(self.loader, saved["judge"]["images"])
        self.judge.load_state_dict(saved["judge"])
        self.result.curve = list(saved["curve"])
        self.result.seconds = dict(saved["seconds"])
        logger.info("resumed at step %d", self.loader.step)

    # ---- the end ---------------------------------------------------------------------------------

    def _hand_over(self) -> FinetuneResult:
        assert self.judge is not None
        result, loader = self.result, self.loader
        result.best = self.judge.restore_best(self.student)
        result.verdicts = list(self.judge.history)
        if loader.layer_weights is not None and loader._taps is not None:
            values = loader.layer_weights.values.tolist()
            result.layer_weights = dict(zip(loader._taps[0].names, values, strict=True))
        if loader.adversary is not None:
            result.restarts = list(loader.adversary.restarts)
            result.examples = loader.adversary.sample()[:64].float().cpu()
        elif loader.source is not None and loader.source.pool is not None:
            result.examples = loader.source.pool[:64].float().cpu()
        if len(result.verdicts) > 1 and not result.improved:
            logger.warning(
                "nothing better than the untrained state was found; it is what the student holds."
            )
        return result
