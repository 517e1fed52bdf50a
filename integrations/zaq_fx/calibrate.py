"""Calibration, bias correction, published methods and the float teacher of a prepared model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx, nn

from zaq_fx.calls import require_batches
from zaq_fx.student import student
from zaq_plugin import ptq
from zaq_plugin.strategies.prepared import Method, quantize_prepared
from zaq_plugin.student.batches import as_calls, inputs_of
from zaq_plugin.student.proof import require_float_function


def calibrate(
    prepared: fx.GraphModule,
    batches: Iterable[Any],
    *,
    bias_correction: bool = True,
    float_model: nn.Module | None = None,
    check: bool = True,
) -> fx.GraphModule:
    """Run calibration batches through a prepared model, freeze the ranges, correct the biases.

    Ranges come from float activations; see `zaq_plugin.ptq.calibrate`.

    Args:
        prepared: From prepare_fx or prepare_qat_fx; changed in place.
        batches: Inputs: tensors, tuples whose first entries are the model's inputs (labels behind
            them are ignored), or mappings. Kept in memory for the bias correction.
        bias_correction: Correct the biases, see `correct_bias`.
        float_model: What the stock ``prepare_fx`` was given (`prepare` compares by itself).
        check: Compare the prepared model, quantizers off, with ``float_model`` on the first batch.

    Returns:
        The prepared model.

    Raises:
        ValueError: no batches, a model that was not prepared, or of which nothing is quantized; a
            prepared model that is not the float one.
        TypeError: a batch is of an unknown kind.
    """
    student(prepared, "calibrate")
    all_batches = list(batches)
    require_batches(prepared, all_batches)
    if check and float_model is not None and all_batches:
        call = as_calls(all_batches[:1], "calibrate", inputs_of(prepared))[0]
        require_float_function(prepared, float_model, call)
    ptq.calibrate(prepared, all_batches)
    if bias_correction:
        correct_bias(prepared, all_batches)
    return prepared


def quantize(
    prepared: fx.GraphModule,
    batches: Iterable[Any] | None = None,
    method: Method = "pwlq+gptq",
    **options: Any,
) -> list[str]:
    """Calibrate a prepared model and quantize it by a published method, in place; then convert it.

    Rounding with error feedback, AdaRound, BRECQ, zero-shot fine-tuning, ...: see
    `zaq_plugin.strategies.quantize_prepared` for the methods and options. Without batches it is
    data-free, and needs ``float_model=`` and ``image_shape=``.

    Args:
        prepared: From prepare_fx or prepare_qat_fx, with weights of this package.
        batches: Calibration images, as in `calibrate`.
        method: ``pwlq+gptq``, ``adaround``, ``brecq``, ``zaq``, ...

    Returns:
        What a reader should know, a line each.

    Raises:
        ValueError: a model that was not prepared, or of which nothing is quantized; a method that
            does not exist or does not go with it.
    """
    student(prepared, "quantize")
    return quantize_prepared(prepared, batches, method, **options)


def correct_bias(prepared: fx.GraphModule, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Remove the mean error that quantized weights cause, layer after layer.

    `zaq_plugin.ptq.correct_bias` on a calibrated model, whose biases are changed in place (the
    float model that it came from is not). A second call with the same batches changes nothing.

    Returns:
        What was added to each layer's bias.

    Raises:
        ValueError: no batches, or nothing to correct.
    """
    student(prepared, "correct_bias")
    return {name: -taken for name, taken in ptq.correct_bias(prepared, batches).items()}
