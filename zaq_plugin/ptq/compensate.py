"""Rounding with error feedback in every layer of a student, and the bias that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.bias import MeanInput, mean_output_error
from zaq_plugin.ptq.compound import CompoundFakeQuantize
from zaq_plugin.ptq.error_feedback import output_error, round_with_feedback
from zaq_plugin.ptq.input_moments import PATCHES, InputMoments, NoProductError, why_no_patches
from zaq_plugin.pwlq.cells import fitting_edges, float_for_levels
from zaq_plugin.pwlq.kernels import to_rows
from zaq_plugin.student import FloatWeights, QuantLayer, student_of
from zaq_plugin.student.layer import bare_layer
from zaq_plugin.student.walk import MEMORY, walk_layers


@dataclass(frozen=True)
class Compensated:
    """What error feedback did to one layer.

    Attributes:
        before: Mean squared output error of the nearest levels, bias aside; None if not measured.
        after: The same of the levels that were chosen.
        moved: Share of the weights that do not have their nearest level.
        reason: Why the layer was left out; empty if it was not.
    """

    before: float | None = None
    after: float | None = None
    moved: float = 0.0
    reason: str = ""


UNREACHED = Compensated(reason="no batch reaches it")


class _Compensation:
    """Rounds one layer's weight, then corrects its bias for what is left."""

    def __init__(self, layer: QuantLayer, reference: Tensor, moments: InputMoments | str) -> None:
        self.layer, self.reference, self.moments = layer, reference, moments
        self.inputs = MeanInput(layer)
        self.result = UNREACHED

    def add(self, x: Tensor) -> None:
        """Take a batch of the layer's inputs into account."""
        self.inputs.add(x)
        if isinstance(self.moments, InputMoments):
            try:
                self.moments.add(x)
            except NoProductError as error:
                self.moments = str(error)

    def finish(self) -> None:
        """Write levels and bias."""
        layer = self.layer
        if isinstance(self.moments, str):
            self.result = Compensated(reason=self.moments)
        else:
            try:
                self.result = _round(layer, self.reference, self.moments.mean())
            except ValueError as error:
                raise ValueError(f"layer {layer.name!r}: {error}") from error
        if layer.bias is not None:
            layer.add_to_bias(-mean_output_error(layer, self.inputs, self.reference))


def compensate_rounding(
    student: nn.Module,
    batches: Iterable[Any],
    reference: nn.Module,
    *,
    seed: int = 0,
    memory: int = MEMORY,
) -> dict[str, Compensated]:
    """Round the float model's weights with error feedback, in place, on the student's grids.

    GPTQ (Frantar et al., ICLR 2023; see `zaq_plugin.ptq.error_feedback`), layer after layer in
    order of execution, on the student's own stream, as `correct_bias`; each layer's bias is
    corrected for the mean error that its new levels leave. Weights stay float parameters: each
    becomes the value closest to the float model's that its fake-quantizer rounds to the level
    chosen. So they are no longer the float model's: whatever compares with it afterwards must be
    given it (`correct_bias`, `audit`: ``reference``; `zero_shot_finetune`: ``teacher``, with
    ``recalibrate=False``, as grids and ranges belong to the levels chosen).

    Args:
        student: Prepared in any host, calibrated if its activations are quantized.
        batches: As for `calibrate`; all are kept in memory.
        reference: The float model that was prepared, or its twin.
        seed: Of the patches that are looked at, where a layer has more than it needs.
        memory: As for `correct_bias`.

    Returns:
        For every quantized layer what was done, or why nothing was.

    Raises:
        ValueError: If there are no batches, no quantized layer, an activation is not finite, or
            ``reference`` is another model.
    """
    rng = torch.Generator().manual_seed(seed)
    view, weights = student_of(student), FloatWeights(reference)
    view.restore_biases()
    works: dict[str, _Compensation] = {}
    owners: dict[int, str] = {}

    def begin(layer: QuantLayer, samples: int) -> _Compensation:
        owner = owners.setdefault(id(layer.parameter), layer.name)
        reason = _why_not(layer)
        if owner != layer.name:
            reason = f"it shares its weight with {owner!r}, where it is rounded"
        assert layer.plain is not None  # it has been run
        moments: InputMoments | str = reason
        target = weights.of(layer)
        if not reason:
            per_sample = max(1, PATCHES // max(1, samples))
            bare = bare_layer(layer.plain, target, layer.bias)
            moments = InputMoments(bare, rng, per_sample)
        works[layer.name] = _Compensation(layer, target, moments)
        return works[layer.name]

    walk_layers(view, batches, begin, what="compensate_rounding", memory=memory)
    return {name: works[name].result if name in works else UNREACHED for name in view.layers()}


def _why_not(layer: QuantLayer) -> str:
    if isinstance(layer.quantizer, CompoundFakeQuantize):
        return f"its weight has {layer.quantizer.remark}"
    return "" if layer.plain is None else why_no_patches(layer.plain)


@torch.no_grad()
def _round(layer: QuantLayer, target: Tensor, moment: Tensor) -> Compensated:
    """Round a weight on its grid; a channel that would get worse keeps its nearest levels."""
    groups, own, first = moment.shape[0], layer.weight, layer.edges.clone()
    target, spec = target.to(own), layer.quantizer.spec

    def grouped(values: Tensor) -> Tensor:  # (groups, channels, n)
        return to_rows(values, 0).unflatten(0, (groups, -1)).to(moment)

    rows = grouped(target)

    def error(values: Tensor) -> Tensor:
        return output_error(rows, grouped(values), moment).flatten()

    before = error(layer.quantized(target))
    chosen = _choose(layer, rows, moment).reshape(target.shape).to(target)
    while layer.axis is not None:  # where levels overflow together, maybe on a coarser grid
        old_edges = layer.edges.clone()
        layer.set_edges(fitting_edges(chosen, spec, layer.axis, old_edges, error))
        moved = (layer.edges != old_edges).any(-1).any(0)
        if not bool(moved.any()):
            break
        again = _choose(layer, rows, moment, moved).reshape(target.shape).to(target)
        chosen = torch.where(_like(moved, target), again, chosen)
    layer.write(float_for_levels(target, chosen, spec, layer.axis, layer.edges))
    nearest, after = layer.quantized(target), error(layer.quantized(layer.weight))
    worse = (after > before) | (after > error(nearest))
    layer.write(torch.where(_like(worse, target), target, layer.weight))
    if layer.axis is not None:
        layer.set_edges(torch.where(worse.view(1, -1, 1).to(first.device), first, layer.edges))
    nearest, got = layer.quantized(target), layer.quantized(layer.weight)
    return Compensated(
        before=float(error(nearest).mean()),
        after=float(error(got).mean()),
        moved=float((got != nearest).double().mean()),
    )


def _choose(
    layer: QuantLayer, rows: Tensor, moment: Tensor, channels: Tensor | None = None
) -> Tensor:
    """Levels for rows (groups, channels, n); of one group only those of some channels are right."""
    levels = layer.levels().expand(rows.shape[0] * rows.shape[1], -1)
    by_channel = levels.unflatten(0, rows.shape[:2]).to(moment).contiguous()
    if channels is None or len(rows) > 1:
        return round_with_feedback(rows, by_channel, moment)
    chosen = rows.clone()
    some = channels.to(rows.device)
    chosen[:, some] = round_with_feedback(rows[:, some], by_channel[:, some], moment).to(rows)
    return chosen


def _like(channels: Tensor, weight: Tensor) -> Tensor:
    """A mask of channels that broadcasts to a weight's shape."""
    return channels.view(-1, *[1] * (weight.dim() - 1)).to(weight.device)
