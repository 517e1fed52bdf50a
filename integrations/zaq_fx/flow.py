"""The whole way in two calls, for those who need none of the host's knobs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.ao.quantization.backend_config import BackendConfig
from torch.ao.quantization.quantize_fx import (
    convert_fx,
    convert_to_reference_fx,
    prepare_fx,
    prepare_qat_fx,
)

from zaq_fx.activations import clamp_narrow, keep_wide, narrow_ranges
from zaq_fx.audit import audit, plan
from zaq_fx.backend import pwlq_backend_config
from zaq_fx.calls import share_weight_quantizers
from zaq_fx.checking import require_conversion
from zaq_fx.kept import lower_concatenations, unwrap
from zaq_fx.layers import NothingDrawn
from zaq_fx.qconfig import (
    Activations,
    pwlq_qat_qconfig_mapping,
    pwlq_qconfig_mapping,
)
from zaq_fx.student import FXStudent
from zaq_fx.surgery import FUNCTIONAL, made_of, prepare_model
from zaq_plugin.observers import RangeObserver
from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.student.assign import Override
from zaq_plugin.student.hand_over import inputs_at_hand, keep_inputs
from zaq_plugin.student.proof import require_float_function


def prepare(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    spec: QuantSpec | None = None,
    activations: Activations = 8,
    *,
    qat: bool = False,
    overrides: Mapping[Any, Override] | None = None,
    input_bits: int = 8,
    other_bits: int = 8,
    backend_config: BackendConfig | None = None,
    check: bool = True,
    **options: Any,
) -> fx.GraphModule:
    """Copy a float model, rewrite what the host cannot reach, and prepare it.

    Args:
        model: A float32 model. It is not changed.
        example_inputs: Inputs to trace with.
        spec: The weights' format; ``PWLQSpec()`` if None.
        activations: Bits of the inputs of convolutions and linear layers, see `pwlq_qconfig`.
        qat: Prepare for training (the model is put in train mode) instead of calibration.
        overrides: What differs, see `pwlq_qconfig_mapping`.
        input_bits, other_bits: Bits of the model's inputs, and of tensors that no convolution or
            linear layer reads; see `keep_wide`.
        backend_config: `pwlq_backend_config()` if None.
        check: Compare the prepared model, quantizers off, with the float one on the example inputs.
        **options: See `pwlq_qconfig`.

    Returns:
        The prepared model: calibrate it, train it (qat), then `convert`.

    Raises:
        ValueError: a model that is not float32, cannot be traced, or of which nothing would be
            quantized; an override that matches nothing; a prepared model that is not the float one.
    """
    ready = prepare_model(model, example_inputs)
    ready.train(qat)
    make = pwlq_qat_qconfig_mapping if qat else pwlq_qconfig_mapping
    mapping = make(spec, activations, overrides=overrides, model=ready, **options)
    for function in FUNCTIONAL:  # those left have weights computed from the input
        mapping.set_object_type(function, None)
    backend = backend_config or pwlq_backend_config()
    host = prepare_qat_fx if qat else prepare_fx
    try:
        prepared: fx.GraphModule = host(ready, mapping, example_inputs, backend_config=backend)
    except Exception as error:
        if not _is_tracing(error):
            raise
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({error}). FX quantization needs a "
            "traceable model; zaq_pt2e takes models with control flow."
        ) from error
    share_weight_quantizers(prepared, made_of(ready).copies)
    prepared.meta["zaq_remarks"] = made_of(ready).remarks
    keep_wide(prepared, input_bits=input_bits, other_bits=other_bits)
    FXStudent(prepared)
    plan(prepared, measure=False).require_any()
    if check:
        require_float_function(prepared, unwrapped(model), example_inputs)
    return prepared


def _require_ranges(prepared: nn.Module) -> None:
    """Refuse to convert what was not calibrated."""
    watched = {n: m for n, m in prepared.named_modules() if isinstance(m, RangeObserver)}
    empty = [name for name, observer in watched.items() if int(observer.num_batches) == 0]
    if empty:
        first = empty[0].removesuffix(".activation_post_process")
        raise ValueError(
            f"convert: the model has seen no data: {len(empty)} of {len(watched)} activations have "
            f"no range to quantize with (the first is {first!r}). Run calibration batches through "
            "the prepared model before converting it: zaq_fx.calibrate(prepared, batches)."
        )


def _is_tracing(error: Exception) -> bool:
    return type(error).__name__ == "TraceError" or "Proxy" in str(error)


def convert(
    prepared: fx.GraphModule,
    *,
    reference: bool = False,
    backend_config: BackendConfig | None = None,
    check: bool = True,
) -> fx.GraphModule:
    """Convert a calibrated or trained model to int8 kernels.

    Stock ``convert_fx`` does the work. Added: activations of fewer than 8 bits are clamped to
    their integers (the host saturates at 0 and 255 only), and the audit comes along, as
    ``zaq_audit``.

    Args:
        prepared: Calibrated; it is not changed.
        reference: Make a reference model (float arithmetic between quantize and dequantize).
        backend_config: The one given to prepare; `pwlq_backend_config()` if None.
        check: Compare the converted model with the prepared one on the first batch of `calibrate`
            or `quantize`; see `zaq_fx.checking`.

    Returns:
        The converted model in eval mode; `audit` tells about it.

    Raises:
        ValueError: the model was not calibrated or not prepared, or nothing was quantized; the
            converted model computes something else.
    """
    original, call = prepared, inputs_at_hand(prepared) if check else None
    _require_ranges(prepared)
    prepared = copy.deepcopy(prepared).eval()
    planned = audit(prepared)
    ranges = narrow_ranges(prepared)
    host = convert_to_reference_fx if reference else convert_fx
    with NothingDrawn():
        converted: fx.GraphModule = host(
            prepared, backend_config=backend_config or pwlq_backend_config()
        )
    if not reference:
        lower_concatenations(converted)
    unwrap(converted)
    clamp_narrow(converted, ranges, reference=reference)
    object.__setattr__(converted, "zaq_audit", audit(converted, planned))
    keep_inputs(converted, None)
    if call is not None:
        require_conversion(original, converted, call, kernels=not reference)
    return converted
