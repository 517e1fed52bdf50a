"""Student and teacher side by side: what the teacher tells the student about a batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.student import twin
from zaq_plugin.student.batches import taking
from zaq_plugin.student.fake_quantizers import fake_quantizers
from zaq_plugin.student.modes import to_evaluation
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.discrepancy import (
    LayerWeights,
    OutputAdapter,
    all_outputs,
    detached,
    mean_over,
    output_discrepancy,
    teacher_divergence,
)
from zaq_plugin.zero_shot.images import ImageFormat
from zaq_plugin.zero_shot.taps import TapPair, find_taps

logger = logging.getLogger(__name__)


class Pair:
    """The two models of a run, and the images that they take.

    Args:
        student: Q, a prepared model, with fake-quantizers; may be wrapped in DDP.
        image_shape: An `ImageFormat`, or (channels, height, width).
        teacher: P; the student's twin by default.
        float_model: The float model before its BatchNorms were folded. By default the teacher is
            looked at.
        mean, std: The model's input normalisation, where ``image_shape`` does not say it.
        adapter: From the model's output to a list of tensors.
        device, dtype: Of images; the student's by default.

    Attributes:
        core: The student without what it is wrapped in.
        memory: The float model with its BatchNorms (the teacher itself, if it has them).
        images: Their format.

    Raises:
        ValueError: if the student has no fake-quantizer.
    """

    def __init__(
        self,
        student: nn.Module,
        image_shape: ImageFormat | tuple[int, int, int],
        *,
        teacher: nn.Module | None = None,
        float_model: nn.Module | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        adapter: OutputAdapter = all_outputs,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.student, self.core = student, unwrapped(student)
        if not fake_quantizers(self.core):
            raise ValueError(
                f"nothing was quantized: {type(self.core).__name__} has no fake-quantizer, so "
                "student and teacher would be the same model. Prepare it first, for instance with "
                "zaq_plugin.ptq.simulate, prepare_qat_fx or prepare_qat_pt2e."
            )
        first = next(self.core.parameters())
        self.device = torch.device(device) if device is not None else first.device
        self.dtype = dtype or first.dtype
        self.images = ImageFormat.of(image_shape, mean, std)
        self.teacher = (teacher if teacher is not None else twin(self.core)).to(self.device)
        self.memory = self.teacher if float_model is None else float_model.to(self.device)
        if self.memory is not self.teacher:
            to_evaluation(self.memory)
        self.adapter = adapter
        self._shape_fits = False

    def blank(self, count: int = 2) -> Tensor:
        """Images of zeros, (count, C, H, W)."""
        return torch.zeros(count, *self.images.shape, device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def check_shape(self) -> None:
        """Try the teacher on two images, once.

        Raises:
            ValueError: if it does not take them.
        """
        if self._shape_fits:
            return
        images = self.blank()
        try:
            with taking(self.teacher, ((images,), {})):
                self.teacher(images)
        except ValueError as error:
            raise ValueError(f"image_shape={tuple(self.images.shape)}: {error}") from error
        self._shape_fits = True


class Feedback:
    """The teacher's answers, and the student's loss against them.

    Args:
        config: The settings.
        pair: The models.

    Attributes:
        taps: Where activations are compared, once `place_taps` was called and if any are.
        terms: Of the latest loss.
    """

    def __init__(self, config: ZeroShotConfig, pair: Pair) -> None:
        self.config, self.pair = config, pair
        self.taps: TapPair | None = None
        self.terms: dict[str, float] = {}

    @property
    def layer_weights(self) -> LayerWeights | None:
        """λ of the taps, if there are any."""
        return None if self.taps is None else self.taps.weights

    def place_taps(self) -> None:
        """Find the taps and hook them, if activations are compared at all."""
        config, pair = self.config, self.pair
        if config.losses.alpha <= 0 and config.losses.feature_weight <= 0:
            return
        names = find_taps(pair.teacher, pair.blank(), config.losses.taps)
        weights = LayerWeights(len(names), config.losses.lambda_decay).to(pair.device)
        norm = config.losses.relation_norm
        self.taps = TapPair(pair.teacher, pair.core, names, weights, norm)
        logger.info("taps: %s", ", ".join(names))

    def answers(self, images: Tensor) -> Any:
        """What the teacher says to images (N, C, H, W), without gradients."""
        with torch.no_grad():
            targets = self.pair.teacher(images.clone())  # which may write into them
        if self.taps is not None:
            self.taps.expect()
        return targets

    def loss(self, output: Any, targets: Any) -> Tensor:
        """The student's loss on the latest batch: D_o (or KL), α D_f, and the feature distance.

        Args:
            output: What the student gave for the images of this batch.
            targets: What `answers` gave for them.

        Raises:
            ValueError: if the student has not run on the images since.
        """
        config, adapter = self.config, self.pair.adapter
        teacher_out, student_out = adapter(detached(targets)), adapter(output)
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
        self.terms = {name: float(value) for name, value in terms.items()}
        return total

    @torch.no_grad()
    def watch(self, images: Tensor) -> dict[str, float]:
        """D_f on ``images`` and the weight λ of every tap (ZAQ, section 3.2).

        Where D_f is part of the loss, λ is the loss's own. Elsewhere nothing else renews it, so
        this call counts as one of its epochs.

        Args:
            images: (N, C, H, W) that nothing trains on; the models are run as they stand.

        Returns:
            ``D_f``, and ``λ NAME`` by tap; empty if nothing is tapped.
        """
        if self.taps is None:
            return {}
        total = self.taps.on_images(images, renew=self.config.losses.alpha <= 0)
        return {"D_f": total, **{f"λ {name}": value for name, value in self.taps.shares.items()}}

    def close(self) -> None:
        """Remove the hooks from the models."""
        if self.taps is not None:
            self.taps.close()
        self.taps = None
