"""LBQ: least-squares clips, and a second tensor for the layers that need it.

Choukroun et al., Low-bit Quantization of Neural Networks for Efficient Inference (ICCV Workshops
2019, arXiv 1902.06822), section 3.2: layers whose error is above a threshold are stored as two
tensors, the second of what the first leaves. Their codes take twice the bits and their
multiplications twice the time; the audit counts both.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zaq_plugin.ptq.compound import ResidualFakeQuantize, install
from zaq_plugin.strategies.images import Distilled
from zaq_plugin.strategies.parts import (
    LeastSquaresActivations,
    LeastSquaresWeights,
    per_channel_only,
)
from zaq_plugin.strategies.stage import Strategy, Work
from zaq_plugin.student import student_of


@dataclass(frozen=True)
class SecondTensor(LeastSquaresWeights):
    """OMSE, with a second tensor for the layers of largest error.

    Attributes:
        threshold: Relative squared error ``|W - Q(W)|^2 / |W|^2`` above which a layer gets one;
            None takes the layers of largest error that together hold at most ``share`` of the
            weights (but the worst layer always gets one).
        share: See above.
    """

    name = "second-tensor"
    several_tensors = True

    threshold: float | None = None
    share: float = 0.1

    def prepare(self, work: Work) -> None:
        """Choose the spec."""
        per_channel_only(work, self.name)
        super().prepare(work)

    def finish(self, work: Work) -> None:
        """Find the layers, and store what is left of them."""
        layers = student_of(work.student).layers()
        errors = {n: relative_error(layer.weight, layer.quantized()) for n, layer in layers.items()}
        numel = {name: layer.weight.numel() for name, layer in layers.items()}
        chosen = self._worst(errors, numel)
        for name in chosen:
            quantizer = layers[name].quantizer
            replacement = ResidualFakeQuantize(
                quantizer.spec, quantizer.ch_axis, layers[name].weight
            )
            install(layers[name], replacement)
        share = sum(numel[name] for name in chosen) / sum(numel.values())
        work.notes.append(
            f"{len(chosen)} of {len(layers)} layers have two tensors, {100 * share:.1f} % of the "
            "weights"
        )

    def _worst(self, errors: dict[str, float], numel: dict[str, int]) -> list[str]:
        """The layers above the threshold; without one those of largest error that fit."""
        if self.threshold is not None:
            return [name for name, error in errors.items() if error > self.threshold]
        room = self.share * sum(numel.values())
        chosen: list[str] = []
        for name in sorted(errors, key=lambda name: -errors[name]):
            if numel[name] <= room or not chosen:
                chosen.append(name)
                room -= numel[name]
        return chosen


def relative_error(weight: Tensor, quantized: Tensor) -> float:
    """``|W - Q(W)|^2 / |W|^2``."""
    wide = weight.detach().double()
    power = float(wide.square().sum())
    return float((wide - quantized.detach().double()).square().sum()) / max(power, 1e-300)


LBQ = Strategy(
    name="lbq",
    title="least-squares clip, second tensor for the layers of largest error",
    paper="Choukroun et al., ICCV Workshops 2019",
    data="synthetic",
    trains=False,
    stages=(Distilled(), SecondTensor(), LeastSquaresActivations()),
    takes_images=True,
)
