"""Calibration: activation ranges from batches, then frozen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from zaq_plugin.layers import LAYERS, hooked
from zaq_plugin.ptq.auditing import audit
from zaq_plugin.ptq.plan import plans_of, trace_order
from zaq_plugin.student import Student, student_of
from zaq_plugin.student.batches import Call, as_calls, fresh, inputs_of, taking
from zaq_plugin.student.fake_quantizers import (
    fake_quantizers,
    input_quantizer,
    is_weight_quantizer,
    output_quantizers,
)
from zaq_plugin.student.hand_over import keep_inputs


def calibrate(student: nn.Module, batches: Iterable[Any], *, output_margin: float = 1.0) -> None:
    """Set the ranges of all activation fake-quantizers from data, and freeze them.

    The data flow is the float model's, as long as nothing has moved the student's float weights:
    weights and activations are not quantized meanwhile. Ranges of an earlier calibration are
    forgotten, so that calibrating twice equals calibrating once. An activation that no batch
    reaches stays float, and the audit says so. Afterwards fake-quantizers are on and observers are
    off, and the first batch is at hand for the proof of what is made of the student later, see
    `zaq_plugin.student.hand_over`.

    Args:
        student: Prepared in any host.
        batches: Tensors, ``(images, labels)`` pairs as from a DataLoader, or keyword mappings; see
            `zaq_plugin.student.batches.as_call`.
        output_margin: What the ranges of the model's outputs are multiplied by, where its host puts
            them on a grid: more than 1 for made images, of which a network is less sure than of
            real ones. Logits beyond their grid tie for the top class. It stays, whatever sets the
            ranges anew, until the next call.

    Raises:
        ValueError: If there are no batches, nothing is quantized, an activation is not finite, or
            the network's input was assumed to enter at another layer than it does.
        TypeError: If a batch is of an unknown kind.
    """
    view = student_of(student)
    calls = as_calls(batches, "calibrate", inputs_of(student))
    for quantizer in output_quantizers(student):
        quantizer.activation_post_process.margin = output_margin
    set_ranges(view, calls)
    keep_inputs(student, calls[0])
    if plans_of(student) is not None:  # a simulated student remembers its own audit
        student.zaq_audit = audit(student)  # type: ignore[assignment]


def set_ranges(view: Student, calls: Iterable[Call]) -> None:
    """Let every activation's observer see the calls, then put the activations on their grids."""
    slots = fake_quantizers(view.model)
    weights = [s.module for s in slots if is_weight_quantizer(s.module)]
    activations = [s for s in slots if not is_weight_quantizer(s.module)]
    layer_of = _readers(view)
    seen: set[int] = set()
    handles = [
        slot.module.register_forward_pre_hook(lambda m, _: seen.add(id(m))) for slot in activations
    ]
    view.switch(quantize=False)
    for slot in activations:
        slot.module.disable_observer()
        if hasattr(slot.module, "reset_min_max_vals"):
            slot.module.reset_min_max_vals()
    try:
        with hooked(handles), view.evaluating():
            for number, call in enumerate(calls):
                if number == 0:
                    _check_input_layer(view.model, call)
                    for slot in activations:
                        slot.module.enable_observer()
                with taking(view.model, call):
                    view.run(fresh(call))
                for module in weights:
                    module.disable_observer()  # a weight does not change from batch to batch
    finally:
        view.switch(observe=False)
        for module in weights:
            module.enable_fake_quant()
    for slot in activations:
        if id(slot.module) in seen:
            _freeze(slot.module, layer_of.get(id(slot.module)))


def _freeze(quantizer: Any, layer: str | None) -> None:
    try:
        quantizer.activation_post_process.calculate_qparams()
    except ValueError as error:
        place = f"input of layer {layer!r}: " if layer else ""
        raise ValueError(f"{place}{error}") from error
    quantizer.enable_fake_quant()


def _readers(view: Student) -> dict[int, str]:
    """Which layer reads an activation's fake-quantizer, where the layer carries it."""
    readers = {}
    for name, module in view.model.named_modules():
        own = input_quantizer(module)
        if own is not None:
            readers[id(own)] = name
    return readers


def _check_input_layer(student: nn.Module, call: Call) -> None:
    """The 8-bit network input must be where the network's input is."""
    plans = plans_of(student)
    if not plans:
        return
    layers = {name: m for name, m in student.named_modules() if isinstance(m, LAYERS)}
    assumed = {name for name, plan in plans.items() if plan.is_input}
    _, actual = trace_order(student, layers, *fresh(call))
    if not assumed or assumed == actual:
        return
    concerned = [plans[name] for name in assumed | actual if name in plans]
    grids = {plan.activations for plan in concerned if plan.weights is not None}
    if len(grids) > 1:
        raise ValueError(
            f"the network's input was taken to enter at {_listed(assumed)}, but it enters at "
            f"{_listed(actual)}; pass example_inputs to simulate(), or input_bits=None to treat it "
            "like any other activation"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in sorted(names))
