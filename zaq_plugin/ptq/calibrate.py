"""Calibration: activation ranges from batches, then frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.auditing import audit
from zaq_plugin.ptq.fold_arithmetic import LAYERS
from zaq_plugin.ptq.plan import trace_order
from zaq_plugin.ptq.student import quantized_layers, weight_fake_quant

Batch = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(batch: object) -> Batch:
    """Positional and keyword arguments of the model for one batch.

    A tensor is the model's input; of a tuple or list, as data loaders give it, the first element is
    the input and the rest (labels) is left out; a mapping is passed by keyword.

    Raises:
        TypeError: If the batch is none of these.
    """
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if isinstance(batch, Tensor):
        return (batch,), {}
    raise TypeError(
        "a batch must be a tensor, a tuple or list that starts with the model's input, or a "
        f"mapping of keyword arguments; got {type(batch).__name__}"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and evaluation mode; every module's own mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def calibrate(student: nn.Module, batches: Iterable[Any]) -> None:
    """Set the ranges of all activation fake-quantizers from data, and freeze them.

    The data flow is the float model's, as long as nothing has moved the student's float weights:
    weights and activations are not quantized meanwhile. Ranges
    of an earlier calibration are forgotten. A layer that no batch reaches keeps a float input, and
    the audit says so.

    Args:
        student: What `simulate` returned.
        batches: Tensors, ``(images, labels)`` pairs as from a DataLoader, or keyword mappings.

    Raises:
        ValueError: If there are no batches, an activation is not finite, or the network's input was
            assumed to enter at another layer than it does.
        TypeError: If a batch is of an unknown kind.
    """
    layers = dict(quantized_layers(student))
    watchers: dict[str, Any] = {
        name: layer.input_fake_quant
        for name, layer in layers.items()
        if hasattr(layer, "input_fake_quant")
    }
    for watcher in watchers.values():
        _forget(watcher)
    weight_quantizers = [q for q in map(weight_fake_quant, layers.values()) if q is not None]
    enabled = [bool(q.fake_quant_enabled[0]) for q in weight_quantizers]
    count = 0
    try:
        for quantizer in weight_quantizers:
            quantizer.disable_fake_quant()
        with evaluating(student):
            for batch in batches:
                args, kwargs = as_call(batch)
                if count == 0:
                    _check_input_layer(student, args, kwargs)
                    for watcher in watchers.values():
                        watcher.enable_observer()
                student(*args, **kwargs)
                count += 1
    finally:
        for quantizer, was_enabled in zip(weight_quantizers, enabled, strict=True):
            quantizer.enable_fake_quant(was_enabled)
        for watcher in watchers.values():
            watcher.disable_observer()
    if count == 0:
        raise ValueError("calibrate got no batches; give at least one batch of inputs")
    for name, watcher in watchers.items():
        observer = watcher.activation_post_process
        if int(observer.num_batches) == 0:
            continue
        try:
            observer.calculate_qparams()
        except ValueError as error:
            raise ValueError(f"input of layer {name!r}: {error}") from error
        watcher.enable_fake_quant()
    student.zaq_audit = audit(student)  # type: ignore[assignment]


def _forget(watcher: Any) -> None:
    watcher.disable_fake_quant()
    own = getattr(watcher, "reset_min_max_vals", None)
    (own or watcher.activation_post_process.reset_min_max_vals)()


def _check_input_layer(
    student: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """The 8-bit network input must be where the network's input is."""
    plans = getattr(student, "zaq_plan", {})
    layers = {name: m for name, m in student.named_modules() if isinstance(m, LAYERS)}
    assumed = {name for name, plan in plans.items() if plan.is_input}
    _, actual = trace_order(student, layers, args, kwargs)
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
