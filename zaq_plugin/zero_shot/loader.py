"""`ZeroShotLoader`: batches without data, in place of a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.student.fake_quantizers import check_calibrated
from zaq_plugin.student.modes import freeze_batch_norm, frozen
from zaq_plugin.zero_shot.adversary import Adversary
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.discrepancy import LayerWeights, OutputAdapter, all_outputs
from zaq_plugin.zero_shot.feedback import Feedback, Pair
from zaq_plugin.zero_shot.images import ImageFormat
from zaq_plugin.zero_shot.sources import ImageSource, Report, SyntheticImages


class ZeroShotLoader:
    """Yields ``(images, teacher_logits)``; the generator's step happens inside the iterator.

    Lifecycle: build it from a prepared, calibrated student; iterate; in the loop call
    ``loader.loss(student(images), targets)`` or any criterion of your own on the soft targets. The
    first iteration distils images and warms the generator up, whichever the config asks for
    (`prepare` does it at a time of your choosing).

    Args:
        student: A prepared model, with fake-quantizers; may be wrapped in DDP.
        image_shape: An `ImageFormat`, or (channels, height, width).
        config: Settings; ``len(loader)`` is ``config.steps``.
        teacher: P; the student's twin by default.
        float_model: The float model before its BatchNorms were folded, whose statistics guide the
            images. By default the teacher is looked at.
        mean, std: The model's input normalisation, where ``image_shape`` does not say it.
        adapter: From the model's output to a list of tensors; all of floating point by default.
        device, dtype: Of the yielded images; the student's by default.
        rank: Position among the processes of a distributed run, which decides the noise; taken from
            torch.distributed by default.

    Raises:
        ValueError: if the student has no fake-quantizer; when it is iterated over, if the student
            was not calibrated, since its activations would train in float.
    """

    def __init__(
        self,
        student: nn.Module,
        image_shape: ImageFormat | tuple[int, int, int],
        config: ZeroShotConfig | None = None,
        *,
        teacher: nn.Module | None = None,
        float_model: nn.Module | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        adapter: OutputAdapter = all_outputs,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        rank: int | None = None,
    ) -> None:
        config = config or ZeroShotConfig()
        pair = Pair(
            student,
            image_shape,
            teacher=teacher,
            float_model=float_model,
            mean=mean,
            std=std,
            adapter=adapter,
            device=device,
            dtype=dtype,
        )
        self._take(config, SyntheticImages(config, pair, rank), Feedback(config, pair))

    @classmethod
    def of(
        cls, config: ZeroShotConfig, images: SyntheticImages, feedback: Feedback
    ) -> ZeroShotLoader:
        """A loader of these images, answered by this feedback's teacher."""
        loader = cls.__new__(cls)
        loader._take(config, images, feedback)
        return loader

    def _take(self, config: ZeroShotConfig, images: SyntheticImages, feedback: Feedback) -> None:
        self.config, self._images, self._feedback = config, images, feedback
        pair = feedback.pair
        self.student, self.teacher, self.images = pair.student, pair.teacher, pair.images
        self.device, self.dtype = pair.device, pair.dtype
        self.step = 0
        self.losses: dict[str, float] = {}

    def __len__(self) -> int:
        return self.config.steps

    @property
    def source(self) -> ImageSource | None:
        """Of batches, once there is one."""
        return self._images.source

    @property
    def adversary(self) -> Adversary | None:
        """The generator's side, if there is one."""
        return self._images.adversary

    @property
    def layer_weights(self) -> LayerWeights | None:
        """λ of the taps, if there are any."""
        return self._feedback.layer_weights

    # ---- getting ready -------------------------------------------------------------------------

    def prepare(
        self, pool: Tensor | None = None, report: Report | None = None, *, warm_up: bool = True
    ) -> None:
        """Find taps, distil images, warm the generator up. Called by the first iteration.

        Args:
            pool: (N, C, H, W) images in place of distilled ones.
            report: Called with (stage, step, steps, loss).
            warm_up: False leaves the generator as it is, for a state to be loaded.
        """
        if self.source is None:
            self._images.prepare(pool, report, warm_up=warm_up)
            self._feedback.place_taps()

    def distill(self, count: int, report: Report | None = None) -> Tensor:
        """Distilled images, the same on every rank, (count, C, H, W)."""
        return self._images.distill(count, report)

    # ---- the loop ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        check_calibrated(
            self._feedback.pair.core,
            "ZeroShotLoader",
            "zaq_plugin.calibrate(student, list(loader.distill(64).split(32))), or with batches of "
            "your own",
        )
        self.prepare()
        if self.step >= self.config.steps:
            self.step = 0
        while self.step < self.config.steps:
            if self.step % self.config.student_steps == 0:
                self._generator_step()
            batch = self.next_batch()
            self.step += 1
            yield batch

    def next_batch(self) -> tuple[Tensor, Any]:
        """Draw images and let the teacher answer; no generator step."""
        images = self._images.batch(self.step)
        return images, self._feedback.answers(images)

    def _generator_step(self) -> None:
        taps = self._feedback.taps
        if taps is not None and self.step and self.step % self.epoch == 0:
            taps.weights.end_epoch()
        if self.adversary is None or self.config.generator.gamma == 0:
            return
        core = self._feedback.pair.core
        with frozen(core):
            features = (None, None) if taps is None else (taps.student, taps.teacher)
            terms = self.adversary.step(core, features[0], features[1], self.layer_weights)
            self.losses.update({f"G {name}": value for name, value in terms.items()})
        self.adversary.restart_if_collapsed(self.adversary.sample(), self.step)

    @property
    def epoch(self) -> int:
        """Steps after which λ is renewed: a twentieth of the run, in whole generator rounds."""
        rounds = max(1, self.config.steps // (20 * self.config.student_steps))
        return rounds * self.config.student_steps

    def loss(self, output: Any, targets: Any) -> Tensor:
        """The student's loss on the latest batch: D_o (or KL), α D_f, and the feature distance.

        Args:
            output: What the student gave for the images of this batch.
            targets: What the loader gave beside them.

        Raises:
            ValueError: if the student has not run on the images since.
        """
        total = self._feedback.loss(output, targets)
        self.losses.update(self._feedback.terms)
        return total

    def freeze(self) -> None:
        """Freeze the student's BatchNorm; call it after every ``student.train()``."""
        freeze_batch_norm(self._feedback.pair.core)

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: tensors, numbers, strings, lists and dicts."""
        self.prepare()
        return {
            "step": self.step,
            "config": self.config.to_json(),
            **self._images.state_dict(),
            "layer_weights": None
            if self.layer_weights is None
            else {k: v.clone() for k, v in self.layer_weights.state_dict().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`.

        Raises:
            ValueError: if the state belongs to another config.
        """
        if ZeroShotConfig.from_json(state["config"]) != self.config:
            raise ValueError(
                "ZeroShotLoader: the saved state belongs to another config; build the loader with "
                f"ZeroShotConfig.from_json({state['config']!r})."
            )
        if self.source is None:
            pool = state["source"]["pool"]
            if pool is None and self.config.uses_distilled:
                raise ValueError("ZeroShotLoader: the saved state holds no distilled images.")
            self.prepare(pool, warm_up=False)
        self._images.load_state_dict(state)
        if self.layer_weights is not None:
            self.layer_weights.load_state_dict(state["layer_weights"])
        self.step = int(state["step"])

    def close(self) -> None:
        """Remove the hooks from the models."""
        self._feedback.close()
