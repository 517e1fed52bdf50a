"""The fake-quantizers inside a student, whatever host prepared it.

A fake-quantizer is recognised by what it does: it carries the switches ``fake_quant_enabled`` and
``observer_enabled``. One with a ``spec`` and ``edges`` and a channel axis holds a weight; one with
a ``scale`` and a ``zero_point`` holds an activation.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from zaq_plugin._range_observer import RangeObserver


@dataclass(frozen=True)
class Slot:
    """Where a fake-quantizer sits.

    Attributes:
        name: Dotted name of the fake-quantizer.
        parent: The module that holds it, under ``attribute``.
        module: The fake-quantizer itself.
    """

    name: str
    parent: nn.Module
    attribute: str
    module: Any

    def swap(self, replacement: nn.Module) -> None:
        """Put another module in its place; forward hooks come along."""
        replacement._forward_hooks = self.module._forward_hooks
        replacement._forward_hooks_with_kwargs = self.module._forward_hooks_with_kwargs
        self.parent._modules[self.attribute] = replacement

    def restore(self) -> None:
        """Put the fake-quantizer back."""
        self.parent._modules[self.attribute] = self.module


def is_fake_quantizer(module: nn.Module) -> bool:
    """Whether a module has the switches of a fake-quantizer."""
    return hasattr(module, "fake_quant_enabled") and hasattr(module, "observer_enabled")


def is_weight_quantizer(module: nn.Module) -> bool:
    """Whether a fake-quantizer holds a weight on levels of its own."""
    return is_fake_quantizer(module) and all(
        hasattr(module, name) for name in ("spec", "edges", "ch_axis")
    )


def fake_quantizers(model: nn.Module) -> list[Slot]:
    """Every fake-quantizer, in the order of the module tree, each once."""
    slots = []
    for name, module in model.named_modules():
        if not is_fake_quantizer(module):
            continue
        head, _, last = name.rpartition(".")
        slots.append(Slot(name, model.get_submodule(head), last, module))
    return slots


def observer_of(watcher: Any) -> Any:
    """The observer inside a fake-quantizer; an observer is its own."""
    return getattr(watcher, "activation_post_process", watcher)


def carried_quantizer(module: Any) -> Any:
    """The fake-quantizer of its weight that a module carries, as torch.ao's do; else None."""
    return _child(module, "weight_fake_quant")


def input_quantizer(module: Any) -> Any:
    """The fake-quantizer of its input that a simulated layer carries; else None."""
    return _child(module, "input_fake_quant")


def _child(module: Any, name: str) -> Any:
    return module._modules.get(name) if isinstance(module, nn.Module) else None


def integers_of(watcher: Any) -> tuple[int, int] | None:
    """Smallest and largest integer of an activation's grid; None if it is not one of integers."""
    low, high = getattr(watcher, "quant_min", None), getattr(watcher, "quant_max", None)
    return None if low is None or high is None else (int(low), int(high))


def range_observer(watcher: Any) -> RangeObserver | None:
    """The observer of ours behind an activation's grid; None for other packages'."""
    observer = observer_of(watcher)
    return observer if isinstance(observer, RangeObserver) else None


def is_uniform(module: Any) -> bool:
    """Whether a fake-quantizer of activations has a step and a zero point."""
    return all(isinstance(getattr(module, n, None), Tensor) for n in ("scale", "zero_point"))


def activation_slots(model: nn.Module) -> list[Slot]:
    """Fake-quantizers of activations whose grid can be learned, uniform or PWLQ."""
    return [
        slot
        for slot in fake_quantizers(model)
        if not is_weight_quantizer(slot.module)
        and (is_uniform(slot.module) or hasattr(slot.module, "format"))
    ]


def output_quantizers(model: nn.Module) -> list[Any]:
    """Uniform fake-quantizers of a graph's outputs, of ours; none where outputs stay float."""
    if not isinstance(model, fx.GraphModule):
        return []
    (output,) = model.graph.find_nodes(op="output")
    called = [node for node in output.all_input_nodes if node.op == "call_module"]
    modules = dict.fromkeys(model.get_submodule(str(node.target)) for node in called)
    return [m for m in modules if is_uniform(m) and range_observer(m) is not None]


def grid_of(slot: Slot) -> Tensor:
    """The buffer that holds an activation's grid: its step, or its breakpoints and clip."""
    grid: Tensor = slot.module.scale if is_uniform(slot.module) else slot.module.edges
    return grid


def set_switches(
    model: nn.Module, *, observe: bool | None = None, quantize: bool | None = None
) -> None:
    """Turn all observers or all fake quantization of a model on or off; None leaves them."""
    for slot in fake_quantizers(model):
        module = slot.module
        if observe is not None:
            module.enable_observer(observe)
        if quantize is not None:
            module.enable_fake_quant(quantize)


def has_range(module: Any) -> bool:
    """Whether a fake-quantizer knows its grid: it holds a weight, or has seen an activation."""
    return is_weight_quantizer(module) or bool(_batches_seen(module))


def _batches_seen(module: Any) -> int | None:
    """How many an activation's fake-quantizer has seen; None of one that does not count."""
    count = getattr(getattr(module, "activation_post_process", None), "num_batches", None)
    return None if count is None else int(count)


def check_calibrated(model: nn.Module, who: str, way_out: str) -> None:
    """Refuse to train a model whose activations have no range: they would stay float.

    An observer that runs beside its fake-quantizer sets the range while it trains, as torch's QAT
    has it. Where some activations were calibrated, those that no batch reached are warned of.

    Args:
        model: A student.
        who: What refuses, as the error calls it.
        way_out: What calibrates, in the error's words.

    Raises:
        ValueError: if no activation has a range, or every fake-quantizer is switched off.
    """
    slots = fake_quantizers(model)
    if not slots:
        return  # stand-ins that train the levels themselves have taken their places
    if not any(bool(slot.module.fake_quant_enabled[0]) for slot in slots):
        raise ValueError(
            f"{who}: all {len(slots)} fake-quantizers of the student are switched off, so that it "
            f"would train in float. Calibrate it first, which switches them on: {way_out}."
        )
    activations = [s for s in slots if not is_weight_quantizer(s.module)]
    without = [s.name for s in activations if not _knows_or_learns_range(s.module)]
    if not without:
        return
    listed = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
    if len(without) == len(activations):
        raise ValueError(
            f"{who}: {len(without)} of {len(activations)} activations of the student have no range "
            f"({listed}), and would train in float. Calibrate it first: {way_out}. Activations "
            "that shall stay float are not prepared at all (activations=None)."
        )
    warnings.warn(
        f"{who}: {len(without)} of {len(activations)} activations of the student have no range and "
        f"stay float ({listed}).",
        stacklevel=3,
    )


def _knows_or_learns_range(module: Any) -> bool:
    observing, quantizing = bool(module.observer_enabled[0]), bool(module.fake_quant_enabled[0])
    if observing and quantizing:
        return True
    seen = _batches_seen(module)
    return quantizing if seen is None else seen > 0


@contextmanager
def quantizing(model: nn.Module) -> Iterator[None]:
    """Observers off, and on its grid whatever has one; all switches come back afterwards."""
    modules = [slot.module for slot in fake_quantizers(model)]
    before = [(bool(m.observer_enabled[0]), bool(m.fake_quant_enabled[0])) for m in modules]
    try:
        for module in modules:
            module.disable_observer()
            if has_range(module):
                module.enable_fake_quant()
        yield
    finally:
        for module, (observed, quantized) in zip(modules, before, strict=True):
            module.enable_observer(observed)
            module.enable_fake_quant(quantized)
