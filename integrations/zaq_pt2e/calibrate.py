"""Calibration, bias correction and the float teacher of a model that the host has prepared.

The stock way works, too: run batches through the prepared model. Conversion then corrects biases by
the mean inputs of the float model; `correct_bias` does it by those of the quantized one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_plugin import ptq
from zaq_plugin.strategies.prepared import Method, quantize_prepared
from zaq_plugin.student import twin as float_twin
from zaq_plugin.student.batches import as_calls, inputs_of
from zaq_plugin.student.fake_quantizers import is_fake_quantizer
from zaq_plugin.student.proof import require_float_function
from zaq_pt2e._compat import is_watcher
from zaq_pt2e.batch_norm import set_training
from zaq_pt2e.graph import add_note
from zaq_pt2e.ready import float_graph, forget_float_graph
from zaq_pt2e.student import GraphLayer, PT2EStudent


def calibrate(
    prepared: GraphModule,
    batches: Iterable[Any],
    *,
    bias_correction: bool = True,
    float_model: nn.Module | None = None,
    check: bool = True,
) -> GraphModule:
    """Run calibration batches through a prepared model, freeze the ranges, correct the biases.

    Ranges come from float activations; see `zaq_plugin.ptq.calibrate`. Afterwards the model is in
    evaluation mode.

    Args:
        prepared: From prepare_pt2e or prepare_qat_pt2e; changed in place.
        batches: Inputs: tensors, tuples whose first entries are the model's inputs (labels behind
            them are ignored), or mappings. Kept in memory for the bias correction.
        bias_correction: Correct the biases, see `correct_bias`.
        float_model: What was prepared; the graph that the quantizer saw if None.
        check: Compare the prepared model, quantizers off, with the float one on the first batch,
            unless it has been trained meanwhile.

    Returns:
        The prepared model.

    Raises:
        ValueError: no batches, a model that was not prepared, or of which nothing is quantized; a
            prepared model that is not the float one.
        TypeError: a batch is of an unknown kind.
    """
    student(prepared, "calibrate")
    all_batches = list(batches)
    set_training(prepared, False)
    _prove(prepared, all_batches, "calibrate", float_model, check)
    ptq.calibrate(prepared, all_batches)
    if bias_correction:
        correct_bias(prepared, all_batches)
    return prepared


def quantize(
    prepared: GraphModule,
    batches: Iterable[Any] | None = None,
    method: Method = "pwlq+gptq",
    **options: Any,
) -> list[str]:
    """Calibrate a prepared model and quantize it by a published method, in place; then convert it.

    Rounding with error feedback, AdaRound, BRECQ, zero-shot fine-tuning, ...: see
    `zaq_plugin.strategies.quantize_prepared` for the methods and options. Without batches it is
    data-free, and needs ``float_model=`` and ``image_shape=``.

    Args:
        prepared: From prepare_pt2e or prepare_qat_pt2e, with weights of this package.
        batches: Calibration images, as in `calibrate`.
        method: ``pwlq+gptq``, ``adaround``, ``brecq``, ``zaq``, ...

    Returns:
        What a reader should know, a line each.

    Raises:
        ValueError: a model that was not prepared, or of which nothing is quantized; a method that
            does not exist or does not go with it.
    """
    view = student(prepared, "quantize")
    set_training(prepared, False)
    if batches is not None and "float_model" not in options:  # which it compares with itself
        batches = list(batches)
        _prove(prepared, batches, "quantize", None, bool(options.get("check", True)))
    notes = quantize_prepared(prepared, batches, method, **options)
    forget_means(view, set(view.layers()))
    return notes


def _prove(
    prepared: GraphModule,
    batches: Sequence[Any],
    who: str,
    float_model: nn.Module | None,
    check: bool,
) -> None:
    """Compare a freshly prepared model with the float one."""
    original = float_graph(prepared) if float_model is None else float_model
    forget_float_graph(prepared)
    if check and original is not None and batches:
        call = as_calls(batches[:1], who, inputs_of(prepared))[0]
        require_float_function(prepared, original, call)


def correct_bias(prepared: GraphModule, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Remove the mean error that quantized weights cause, layer after layer.

    `zaq_plugin.ptq.correct_bias` on a calibrated model, whose biases are changed in place. A second
    call with the same batches changes nothing, and conversion does not correct these layers again.

    Returns:
        What was added to each layer's bias.

    Raises:
        ValueError: no batches, or nothing to correct.
    """
    view = student(prepared, "correct_bias")
    taken = ptq.correct_bias(prepared, batches)
    forget_means(view, set(taken))
    return {name: -shift for name, shift in taken.items()}


def forget_means(view: PT2EStudent, names: set[str]) -> None:
    """Let conversion leave the biases of these layers as they are."""
    for layer in view.layers().values():
        if layer.name in names and isinstance(layer, GraphLayer):
            add_note(layer.node, input_mean=None, remark="bias corrected")


def student(prepared: nn.Module, who: str) -> PT2EStudent:
    """The view of a prepared model.

    Raises:
        ValueError: the model was not prepared, or nothing of it has weights of this package.
    """
    _require_prepared(prepared, who)
    view = PT2EStudent(prepared)
    if not view.layers():
        raise ValueError(
            f"{who}: no layer of this model has weights quantized by this package, so there "
            "is nothing to correct. Was it prepared with PWLQQuantizer or with_pwlq?"
        )
    return view


def _require_prepared(prepared: nn.Module, who: str) -> None:
    if not any(is_watcher(module) for module in prepared.modules()):
        raise ValueError(
            f"{who}: expected a model from prepare_pt2e or prepare_qat_pt2e; this one holds "
            "neither observers nor fake-quantizers. Take it before convert_pt2e."
        )


def twin(prepared: GraphModule) -> nn.Module:
    """A float copy of a prepared model: it computes what the model computed before.

    See `zaq_plugin.student.Student.twin`. Every node and module has the name that it has in the
    prepared model, so that a tap in one is a tap in the other; it stays in evaluation mode.

    Args:
        prepared: From ``prepare_pt2e`` or ``prepare_qat_pt2e``, calibrated, trained or neither.
            It is not changed.

    Raises:
        ValueError: the model holds neither observers nor fake-quantizers.
    """
    _require_prepared(prepared, "twin")
    return float_twin(prepared)


@torch.no_grad()
def freeze_ranges(prepared: nn.Module) -> None:
    """Stop every fake-quantizer's observer: ranges and breakpoints stay as calibrated.

    What training at length wants: solving for breakpoints anew at each step is slow.

    Raises:
        ValueError: the model holds no fake-quantizer.
    """
    watchers = [m for m in prepared.modules() if is_watcher(m) and is_fake_quantizer(m)]
    if not watchers:
        raise ValueError(
            "freeze_ranges: the model holds no fake-quantizer. Prepare it with prepare_qat_pt2e "
            "and PWLQQuantizer(..., qat=True)."
        )
    for module in watchers:
        module.disable_observer()  # type: ignore[operator]
