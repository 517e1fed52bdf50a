"""DFQ: data-free quantization by equalisation and bias correction.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019,
arXiv 1906.04721): cross-layer equalisation and bias absorption (section 4.1), biases corrected by
BatchNorm statistics (4.2), activation ranges ``β +- n γ`` (section 5). No image is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zaq_plugin.ptq.bias import correct_bias_by_moments
from zaq_plugin.ptq.channel_moments import Moments, input_moments
from zaq_plugin.ptq.equalise import absorb_bias, equalise
from zaq_plugin.ptq.fold import Normal, Remembered, folding_of, remembered_statistics, rescaled
from zaq_plugin.strategies.images import Distilled, statistics_of
from zaq_plugin.strategies.parts import MinMaxWeights
from zaq_plugin.strategies.stage import Stage, Strategy, Work
from zaq_plugin.student import student_of
from zaq_plugin.student.fake_quantizers import input_quantizer, is_uniform

STATISTICS = "remembered statistics"


@dataclass(frozen=True)
class Equalise(Stage):
    """Cross-layer equalisation, and high-bias absorption where there are BatchNorms.

    Attributes:
        absorb: Absorb high biases, too.
        replace_relu6: Put ReLU in the place of ReLU6, as the paper does.
    """

    slot = "before"
    name = "equalise"

    absorb: bool = True
    replace_relu6: bool = False

    def prepare(self, work: Work) -> None:
        """Rescale ``work.folded``, which may become a graph."""
        folding = folding_of(work.folded)
        done = equalise(work.folded, work.request.example_inputs, replace_relu6=self.replace_relu6)
        done.model.zaq_folding = folding  # type: ignore[assignment]
        note = f"{len(done.pairs)} pairs of layers equalised"
        try:
            remembered = rescaled(remembered_statistics(work.model, done.model), done.factors)
        except ValueError:
            remembered = {}
        if remembered and self.absorb:
            absorb_bias(done, remembered)
            note += f", biases of {len(done.absorbed)} absorbed"
        if self.replace_relu6:
            note += ", ReLU6 replaced by ReLU"
        work.facts[STATISTICS] = remembered
        work.folded = done.model
        work.notes.append(note)


@dataclass(frozen=True)
class BatchNormRanges(Stage):
    """Activation ranges from BatchNorm statistics: ``β +- n γ``, cut by the activation.

    Where the graph does not say what reaches a layer, distilled images do.

    Attributes:
        sigmas: n; 6 in the paper.
    """

    slot = "activations"
    name = "batch-norm-ranges"

    sigmas: float = 6.0

    def finish(self, work: Work) -> None:
        """Set every range."""
        if work.request.activation_bits is None:
            return
        inputs = moments_of(work, self.sigmas)
        layers = student_of(work.student).layers()
        own = {n: input_quantizer(x.plain) for n, x in layers.items()}
        unknown = [n for n in layers if inputs.get(n) is None]
        if all(watcher is None for watcher in own.values()):
            work.calibrate()
            work.notes.append(
                f"ranges from distilled images: {work.host.name} has grids for tensors, and "
                "BatchNorm statistics are known for layers"
            )
        elif unknown:
            work.calibrate()
            work.notes.append(
                f"ranges of {len(unknown)} layers from distilled images: BatchNorm statistics do "
                f"not reach {', '.join(unknown[:3])}"
            )
        for name, watcher in own.items():
            moments = inputs.get(name)
            if moments is not None and watcher is not None:
                _set_range(watcher, moments)
        work.calibrated = True


class CorrectBiasByMoments(Stage):
    """Bias correction by BatchNorm statistics (section 4.2.1)."""

    slot = "after"
    name = "batch-norm-correction"

    def finish(self, work: Work) -> None:
        """Correct every layer whose mean input is known."""
        work.refuse_after_training(self.name)
        taken = correct_bias_by_moments(work.student, moments_of(work), reference=work.teacher)
        count = len(student_of(work.student).layers())
        if not taken:
            raise ValueError(
                f"{type(work.model).__name__}: BatchNorm statistics reach none of its layers, so "
                "no bias can be corrected by them; use 'bias-correction', which works from images"
            )
        work.notes.append(f"biases of {len(taken)} of {count} layers corrected by BatchNorm")


def moments_of(work: Work, sigmas: float = 6.0) -> dict[str, Moments | None]:
    """What each layer's input is like; computed before quantization would show in it.

    Raises:
        ValueError: If the model has no BatchNorm.
    """
    key = f"moments at {sigmas}"
    if key not in work.facts:
        remembered: Remembered = work.facts.get(STATISTICS) or remembered_statistics(
            work.model, work.folded
        )
        statistics = statistics_of(work)
        flat = [v.flatten().double() for v in (statistics.shift(), statistics.scale())]
        black, white = (v.flatten().double() for v in (statistics.low(), statistics.high()))
        work.facts[key] = input_moments(
            work.folded,
            {name: _on(normal, work.device) for name, normal in remembered.items()},
            example_inputs=work.request.example_inputs,
            image=_on(Normal(flat[0], flat[1]), work.device),
            image_range=(black.to(work.device), white.to(work.device)),
            sigmas=sigmas,
        )
    moments: dict[str, Moments | None] = work.facts[key]
    return moments


def _on(normal: Normal, device: torch.device) -> Normal:
    return Normal(normal.mean.to(device), normal.deviation.to(device))


def _set_range(watcher: Any, moments: Moments) -> None:
    """Put a range into an activation's fake-quantizer as if it had been observed."""
    observer = watcher.activation_post_process
    if not is_uniform(watcher):
        raise ValueError(
            "batch-norm ranges are for uniform activations; PWLQ activations need images, such as "
            "those of the part 'distilled'"
        )

    def put(target: Tensor, value: Tensor) -> None:
        target.copy_(value.to(target))

    put(observer.min_val, moments.low.min())
    put(observer.max_val, moments.high.max())
    observer.num_batches.fill_(1)
    scale, zero_point = observer.qparams()
    put(watcher.scale, scale)
    put(watcher.zero_point, zero_point)
    watcher.enable_fake_quant()


DFQ = Strategy(
    name="dfq",
    title="cross-layer equalisation, bias absorption, BatchNorm-based bias correction",
    paper="Nagel et al., ICCV 2019",
    data="none",
    trains=False,
    stages=(Equalise(), Distilled(), MinMaxWeights(), BatchNormRanges(), CorrectBiasByMoments()),
    takes_images=True,
)
