"""Rounding with error feedback in every layer of a student, and the bias that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.bias import MeanInput, mean_output_error, take_back, take_out
from zaq_plugin.ptq.compound import CompoundFakeQuantize
from zaq_plugin.ptq.error_feedback import output_error, round_with_feedback
from zaq_plugin.ptq.input_moments import InputMoments, has_columns
from zaq_plugin.ptq.layer_walk import MEMORY, walk_layers
from zaq_plugin.ptq.student import float_weight, reference_weight, weight_fake_quant
from zaq_plugin.pwlq.cells import levels_of, nearest_in_cell
from zaq_plugin.pwlq.layout import from_rows, to_rows


@dataclass(frozen=True)
class Compensated:
    """What error feedback did to one layer.

    Attributes:
        before: Mean squared output error of the nearest levels, bias aside.
        after: The same of the levels that were chosen.
        moved: Share of the weights that no longer have their nearest level.
        reason: Why the nearest levels were kept; empty if they were not.
    """

    before: float = 0.0
    after: float = 0.0
    moved: float = 0.0
    reason: str = ""


class _Compensation:
    """Rounds one layer's weight, then corrects its bias for what is left."""

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        reference: Tensor | None,
        rng: torch.Generator,
        results: dict[str, Compensated],
        shared: str = "",
    ) -> None:
        self.name, self.layer, self.results = name, layer, results
        self.reference = reference
        self.reason = _why_not(layer, shared)
        self.inputs = MeanInput(layer)
        self.moments = None if self.reason else InputMoments(layer, rng)

    def add(self, x: Tensor) -> None:
        """Take a batch of the layer's inputs into account."""
        self.inputs.add(x)
        if self.moments is not None:
            self.moments.add(x)

    def finish(self) -> None:
        """Write levels and bias."""
        given = float_weight(self.layer) if self.reference is None else self.reference
        wanted = given.detach().clone()  # the parameter itself is about to change
        if self.moments is None:
            self.results[self.name] = Compensated(reason=self.reason)
        else:
            try:
                self.results[self.name] = _round(self.layer, wanted, self.moments.mean())
            except ValueError as error:
                raise ValueError(f"layer {self.name!r}: {error}") from error
        take_out(self.name, self.layer, mean_output_error(self.layer, self.inputs, wanted))


def compensate_rounding(
    student: nn.Module,
    batches: Iterable[Any],
    *,
    reference: nn.Module | None = None,
    seed: int = 0,
    memory: int = MEMORY,
) -> dict[str, Compensated]:
    """Round every quantized weight with error feedback (GPTQ), in place, on the grids there are.

    Layer after layer in order of execution, on the student's own stream, as `correct_bias`; each
    layer's bias is corrected for the mean error that its new levels leave. Weights stay float
    parameters: each becomes the value closest to itself that its fake-quantizer rounds to the level
    chosen. Frantar et al., GPTQ (ICLR 2023); see `zaq_plugin.ptq.error_feedback`.

    Args:
        student: What `simulate` returned, calibrated if its activations are quantized.
        batches: As for `calibrate`; all are kept in memory.
        reference: The float model that `simulate` got, if the student's float weights have been
            moved since.
        seed: Of the patches that are looked at, where a layer has more than it needs.
        memory: As for `correct_bias`.

    Returns:
        For each layer what was done, and where nothing was, why.

    Raises:
        ValueError: If there are no batches, no quantized layer, or an activation is not finite.
    """
    rng = torch.Generator().manual_seed(seed)
    results: dict[str, Compensated] = {}
    owners: dict[int, str] = {}

    def begin(name: str, layer: nn.Module) -> _Compensation:
        owner = owners.setdefault(id(float_weight(layer)), name)
        shared = "" if owner == name else owner
        return _Compensation(name, layer, reference_weight(reference, name), rng, results, shared)

    walk_layers(
        student, batches, begin, what="compensate_rounding", prepare=take_back, memory=memory
    )
    return results


def _why_not(layer: nn.Module, shared: str) -> str:
    quantizer = weight_fake_quant(layer)
    if shared:
        return f"it shares its weight with {shared!r}, whose inputs it was rounded for"
    if isinstance(quantizer, CompoundFakeQuantize):
        return f"its weight has {quantizer.remark}"
    if not has_columns(layer):
        return f"{type(layer).__name__} does not multiply patches of its input"
    return ""


@torch.no_grad()
def _round(layer: nn.Module, wanted: Tensor, moment: Tensor) -> Compensated:
    """Round a weight on its grid; a channel that would get worse keeps its nearest levels."""
    quantizer: Any = weight_fake_quant(layer)
    original, groups = float_weight(layer), moment.shape[0]

    def grouped(values: Tensor) -> Tensor:  # (groups, channels, n)
        return to_rows(values, 0).unflatten(0, (groups, -1)).to(moment)

    levels = levels_of(quantizer.edges, quantizer.spec)
    by_channel = levels.expand(wanted.shape[0], -1).unflatten(0, (groups, -1)).to(moment)
    rows, nearest = grouped(wanted), grouped(quantizer(wanted))
    made = round_with_feedback(rows, by_channel.contiguous(), moment)
    chosen = to_rows(made.flatten(0, 1), 0).reshape(wanted.shape).to(wanted)
    _write(layer, wanted, chosen, levels)
    got = grouped(quantizer(original))
    before, after = output_error(rows, nearest, moment), output_error(rows, got, moment)
    worse = (after > before).flatten().view(-1, *[1] * (wanted.dim() - 1))
    original.copy_(torch.where(worse, wanted, original))
    return Compensated(
        before=float(before.mean()),
        after=float(torch.minimum(before, after).mean()),
        moved=float((grouped(quantizer(original)) != nearest).double().mean()),
    )


def _write(layer: nn.Module, wanted: Tensor, chosen: Tensor, levels: Tensor) -> None:
    """Make the float weights those closest to the wanted ones that are rounded to their levels."""
    quantizer: Any = weight_fake_quant(layer)
    axis, original = quantizer.ch_axis, float_weight(layer)
    rows, target = to_rows(wanted, axis).float(), to_rows(chosen, axis).float()
    inside = nearest_in_cell(rows, target, levels.float())
    original.copy_(from_rows(inside, wanted, axis).to(original))
    # Rounding of the scale may move a level by one unit in the last place, and pieces of a float
    # grid need not meet half-way: there the level itself is written.
    missed = quantizer(original) != quantizer(chosen.to(original))
    original.copy_(torch.where(missed, chosen.to(original), original))
