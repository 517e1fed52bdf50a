"""The fake-quantizers inside a student, whatever host prepared it.

A fake-quantizer is recognised by what it does: it carries the switches ``fake_quant_enabled`` and
``observer_enabled``. One with a ``spec`` and ``edges`` and a channel axis holds a weight; one with
a ``scale`` and a ``zero_point`` holds an activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_plugin.pwlq import fake_quantize
from zaq_plugin.pwlq.cells import levels_of
from zaq_plugin.pwlq.layout import from_rows, to_rows


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


@dataclass(frozen=True)
class WeightSlot(Slot):
    """A weight's fake-quantizer, and the parameter that feeds it.

    Attributes:
        parameter: The parameter, as it is trained.
        seen: (same shape) what the fake-quantizer sees of it: the parameter itself, or the
            parameter times a factor per channel where the host folds BatchNorm on the fly.
    """

    parameter: nn.Parameter
    seen: Tensor

    def levels(self) -> Tensor:
        """(channels, L) ascending levels in weight units."""
        spec, edges = self.module.spec, self.module.edges
        if not isinstance(edges, Tensor) or edges.numel() == 0:
            raise ValueError(f"{self.name} has no breakpoints yet; run the model on a batch first.")
        return levels_of(edges, spec)

    def rows(self, values: Tensor) -> Tensor:
        """A tensor of the weight's shape as (channels, elements)."""
        return to_rows(values, self.axis)

    def unrows(self, rows: Tensor) -> Tensor:
        """Undo `rows`."""
        return from_rows(rows, self.seen, self.axis)

    @property
    def axis(self) -> int | None:
        """The channels' axis of the weight."""
        axis = self.module.ch_axis
        return None if axis is None else int(axis)

    def quantized(self, seen: Tensor) -> Tensor:
        """What the fake-quantizer makes of a value, at its present edges."""
        edges = self.module.edges
        return fake_quantize(seen, self.module.spec, self.axis, edges=edges.detach())

    @torch.no_grad()
    def set_edges(self, edges: Tensor) -> None:
        """Give the fake-quantizer other breakpoints and clips, (sides, channels, n + 1)."""
        self.module.activation_post_process.edges.copy_(edges)

    @torch.no_grad()
    def write(self, seen: Tensor) -> None:
        """Change the parameter so that the fake-quantizer sees these values."""
        rows, raw = self.rows(self.seen), self.rows(self.parameter.detach())
        weight = rows.double().square().sum(1, keepdim=True)
        factor = (rows.double() * raw.double()).sum(1, keepdim=True) / weight.clamp(min=1e-300)
        same = torch.equal(self.seen, self.parameter.detach())
        target = self.rows(seen.to(self.parameter))
        if not same:
            target = (target.double() * factor).to(self.parameter)
        self.parameter.copy_(self.unrows(target).to(self.parameter))


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
    found = []
    for name, module in model.named_modules():
        if not is_fake_quantizer(module):
            continue
        head, _, last = name.rpartition(".")
        found.append(Slot(name, model.get_submodule(head), last, module))
    return found


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


def grid_of(slot: Slot) -> Tensor:
    """The buffer that holds an activation's grid: its step, or its breakpoints and clip."""
    name = "scale" if is_uniform(slot.module) else "edges"
    grid: Tensor = getattr(slot.module, name)
    return grid


@torch.no_grad()
def weight_slots(model: nn.Module, example: Tensor) -> list[WeightSlot]:
    """Every weight fake-quantizer with its parameter, found by one forward pass.

    Args:
        model: A prepared student.
        example: A batch of images.

    Raises:
        ValueError: if the student has none, or a weight's parameter cannot be found.
    """
    slots = [slot for slot in fake_quantizers(model) if is_weight_quantizer(slot.module)]
    if not slots:
        raise ValueError(
            f"nothing was quantized: {type(model).__name__} has no weight fake-quantizer. Prepare "
            "it first: zaq_plugin.ptq.simulate for an eager model, or the host's QAT preparation "
            "(prepare_qat_fx, prepare_qat_pt2e) with a PWLQ weight fake-quantizer."
        )
    seen: dict[str, Tensor] = {}
    handles = []
    for slot in slots:

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], name: str = slot.name) -> None:
            seen[name] = inputs[0].detach()

        handles.append(slot.module.register_forward_pre_hook(keep))
    try:
        model(example.clone())  # which may write into it
    finally:
        for handle in handles:
            handle.remove()
    by_address = {p.data_ptr(): p for p in model.parameters()}
    found = []
    for slot in slots:
        if slot.name not in seen:
            continue  # a layer that this input never reaches
        value = seen[slot.name]
        parameter = by_address.get(value.data_ptr())
        if parameter is None or parameter.shape != value.shape:
            parameter = _feeding_parameter(model, slot, value.shape)
        found.append(
            WeightSlot(
                slot.name, slot.parent, slot.attribute, slot.module, parameter, value.clone()
            )
        )
    return found


def _feeding_parameter(model: nn.Module, slot: Slot, shape: torch.Size) -> nn.Parameter:
    own = getattr(slot.parent, "weight", None)
    if isinstance(own, nn.Parameter) and own.shape == shape:
        return own
    if isinstance(slot.parent, fx.GraphModule):
        start = [n for n in slot.parent.graph.nodes if n.target == slot.name]
        reached, queue = set(start), list(start)
        while queue:
            for node in queue.pop().all_input_nodes:
                if node in reached:
                    continue
                reached.add(node)
                queue.append(node)
                if node.op == "get_attr":
                    value = _get(slot.parent, str(node.target))
                    if isinstance(value, nn.Parameter) and value.shape == shape:
                        return value
    raise ValueError(
        f"{slot.name}: the parameter behind this weight fake-quantizer was not found; a weight of "
        f"shape {tuple(shape)} reaches it. Weights must be parameters of the student, scaled by "
        "channel at most."
    )


def _get(model: nn.Module, path: str) -> object:
    value: object = model
    for part in path.split("."):
        value = getattr(value, part)
    return value


def set_switches(
    model: nn.Module, *, observe: bool | None = None, quantize: bool | None = None
) -> None:
    """Turn all observers or all fake quantization of a model on or off; None leaves them."""
    for slot in fake_quantizers(model):
        module = slot.module
        for wanted, on, off in (
            (observe, "enable_observer", "disable_observer"),
            (quantize, "enable_fake_quant", "disable_fake_quant"),
        ):
            if wanted is not None:
                getattr(module, on if wanted else off)()
