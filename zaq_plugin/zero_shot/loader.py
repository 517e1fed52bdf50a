"""`ZeroShotLoader`: batches without data, in place of a DataLoader."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.student import twin
from zaq_plugin.student.fake_quantizers import check_calibrated, fake_quantizers
from zaq_plugin.student.inputs import taking
from zaq_plugin.student.modes import freeze_batch_norm, frozen, to_evaluation
from zaq_plugin.zero_shot.adversary import Adversary
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.discrepancy import (
    LayerWeights,
    output_discrepancy,
    teacher_divergence,
)
from zaq_plugin.zero_shot.outputs import OutputAdapter, all_outputs, detached, mean_over
from zaq_plugin.zero_shot.sources import ImageSource, Report, SyntheticImages
from zaq_plugin.zero_shot.statistics import ImageFormat
from zaq_plugin.zero_shot.taps import TapPair, find_taps

logger = logging.getLogger(__name__)


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
        self.config = config or ZeroShotConfig()
        self.student = student
        core = unwrapped(student)
        if not fake_quantizers(core):
            raise ValueError(
                f"nothing was quantized: {type(core).__name__} has no fake-quantizer, so student "
                "and teacher would be the same model. Prepare it first, for instance with "
                "zaq_plugin.ptq.simulate, prepare_qat_fx or prepare_qat_pt2e."
            )
        first = next(core.parameters())
        self.device = torch.device(device) if device is not None else first.device
        self.dtype = dtype or first.dtype
        self.images = ImageFormat.of(image_shape, mean, std)
        self.teacher = (teacher if teacher is not None else twin(core)).to(self.device)
        self.memory = self.teacher if float_model is None else float_model.to(self.device)
        if self.memory is not self.teacher:
            to_evaluation(self.memory)
        self.adapter = adapter
        self.synthetic = SyntheticImages(
            self.config,
            self.images,
            self.teacher,
            self.memory,
            adapter,
            device=self.device,
            dtype=self.dtype,
            rank=_rank() if rank is None else rank,
        )
        self.step = 0
        self._shape_fits = False
        self.losses: dict[str, float] = {}
        self.taps: TapPair | None = None

    def __len__(self) -> int:
        return self.config.steps

    @property
    def source(self) -> ImageSource | None:
        """Of batches, once there is one."""
        return self.synthetic.source

    @property
    def adversary(self) -> Adversary | None:
        """The generator's side, if there is one."""
        return self.synthetic.adversary

    @property
    def layer_weights(self) -> LayerWeights | None:
        """λ of the taps, if there are any."""
        return None if self.taps is None else self.taps.weights

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
            self._check_shape()
            self.synthetic.prepare(pool, report, warm_up=warm_up)
            self._place_taps()

    def distill(self, count: int, report: Report | None = None) -> Tensor:
        """Distilled images, the same on every rank, (count, C, H, W)."""
        self._check_shape()
        return self.synthetic.distill(count, report)

    @torch.no_grad()
    def _check_shape(self) -> None:
        """Try the teacher on two images, once."""
        if self._shape_fits:
            return
        images = torch.zeros(2, *self.images.shape, device=self.device, dtype=self.dtype)
        try:
            with taking(self.teacher, ((images,), {})):
                self.teacher(images)
        except ValueError as error:
            raise ValueError(f"image_shape={tuple(self.images.shape)}: {error}") from error
        self._shape_fits = True

    def _place_taps(self) -> None:
        config = self.config
        if config.losses.alpha <= 0 and config.losses.feature_weight <= 0:
            return
        example = torch.zeros(2, *self.images.shape, device=self.device, dtype=self.dtype)
        names = find_taps(self.teacher, example, config.losses.taps)
        weights = LayerWeights(len(names), config.losses.lambda_decay).to(self.device)
        student, norm = unwrapped(self.student), config.losses.relation_norm
        self.taps = TapPair(self.teacher, student, names, weights, norm)
        logger.info("taps: %s", ", ".join(names))

    # ---- the loop ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        check_calibrated(
            unwrapped(self.student),
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
        images = self.synthetic.batch(self.step)
        with torch.no_grad():
            targets = self.teacher(images.clone())  # which may write into them
        if self.taps is not None:
            self.taps.expect()
        return images, targets

    def _generator_step(self) -> None:
        taps = self.taps
        if taps is not None and self.step and self.step % self.epoch == 0:
            taps.weights.end_epoch()
        if self.adversary is None or self.config.generator.gamma == 0:
            return
        core = unwrapped(self.student)
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
        config = self.config
        teacher_out, student_out = self.adapter(detached(targets)), self.adapter(output)
        measure = output_discrepancy if config.losses.output == "l1" else teacher_divergence
        total = mean_over(measure, teacher_out, student_out)
        terms = {"D_o" if config.losses.output == "l1" else "KL": total.detach()}
        if self.taps is not None:
            shares = {"D_f": config.losses.alpha, "features": config.losses.feature_weight}
            gaps = self.taps.compare(relations=shares["D_f"] > 0, values=shares["features"] > 0)
            for name, gap in gaps.items():
                total = total + shares[name] * gap
                terms[name] = gap.detach()
        terms["loss"] = total.detach()
        self.losses.update({name: float(value) for name, value in terms.items()})
        return total

    def freeze(self) -> None:
        """Freeze the student's BatchNorm; call it after every ``student.train()``."""
        freeze_batch_norm(unwrapped(self.student))

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: tensors, numbers, strings, lists and dicts."""
        self.prepare()
        return {
            "step": self.step,
            "config": self.config.to_json(),
            **self.synthetic.state_dict(),
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
        self.synthetic.load_state_dict(state)
        if self.layer_weights is not None:
            self.layer_weights.load_state_dict(state["layer_weights"])
        self.step = int(state["step"])

    def close(self) -> None:
        """Remove the hooks from the models."""
        if self.taps is not None:
            self.taps.close()
        self.taps = None


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
