"""Students of NNCF: quantizers live under the root and run in the root's forward pass only.

So submodules are run as the whole model runs them, with NNCF's hooks. NNCF names an operator by the
modules that are being called around it, and counts operators of one name. Modules that are never
called (``nn.ModuleList``) give no name, so that the operators of their items share names, and only
the count tells them apart: where a part begins in it is noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zaq_nncf._compat import (
    DisableTorchFunction,
    FunctionHookMode,
    current_mode,
    decode_hook_name,
    hooks_of,
    is_wrapped,
)
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.calibration import own
from zaq_nncf.settings import layer_name
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer, tensor_of
from zaq_plugin.layers import LAYERS
from zaq_plugin.student import ModuleStudent, QuantLayer, register_student
from zaq_plugin.student.batches import Call
from zaq_plugin.student.fake_quantizers import Slot
from zaq_plugin.student.recording import Passes, module_passes, named_modules
from zaq_plugin.student.view import Before

# ---- Parts, run as the whole model runs them -----------------------------------------------------

PARTS = "zaq_parts"


@dataclass(frozen=True)
class Part:
    """How a submodule is called.

    Attributes:
        around: Modules that are being called around it, from the outside in, without the root.
        before: How often each operator inside has run before.
        after: The same behind it.
    """

    around: tuple[str, ...]
    before: dict[str, int]
    after: dict[str, int]

    def holds(self, operator: str) -> bool:
        """Whether an operator, by NNCF's name for it, runs inside."""
        name, _, number = operator.rpartition("/")
        ours = name in self.after and number.isdigit()
        return ours and self.before[name] <= int(number) < self.after[name]


@torch.no_grad()
def note_parts(model: nn.Module, example_input: Any) -> None:
    """Note, with the model, the parts that are not called by every module around them.

    Args:
        model: The root, wrapped by NNCF; it runs once.
        example_input: A tensor, tuple or mapping that it is called with.
    """
    names = {id(module): name for name, module in model.named_modules()}
    begun: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {}
    parts: dict[str, Part] = {}

    def begin(module: nn.Module, *_: Any) -> None:
        mode, name = current_mode(), names[id(module)]
        if mode is not None and name not in begun:
            around = tuple(names[id(m)] for m in mode.module_call_stack[1:-1])
            begun[name] = around, dict(mode.op_calls)

    def end(module: nn.Module, *_: Any) -> None:
        mode, name = current_mode(), names[id(module)]
        if mode is None or name in parts or name not in begun:
            return
        around, before = begun[name]
        after = {k: n for k, n in mode.op_calls.items() if n != before.get(k, 0)}
        parts[name] = Part(around, {k: before.get(k, 0) for k in after}, after)

    inside = [m for n, m in model.named_modules() if n and not n.startswith("__nncf")]
    handles = [m.register_forward_pre_hook(begin) for m in inside]
    handles += [m.register_forward_hook(end) for m in inside]
    try:
        call = own(example_input)
        if isinstance(call, dict):
            model(**call)
        else:
            model(*(call if isinstance(call, tuple) else (call,)))
    finally:
        for handle in handles:
            handle.remove()
    detached = {name: part for name, part in parts.items() if part.around != _parents(name)}
    model.__dict__[PARTS] = detached


def _parents(name: str) -> tuple[str, ...]:
    places = name.split(".")
    return tuple(".".join(places[:i]) for i in range(1, len(places)))


def part_of(model: nn.Module, name: str) -> Part:
    """How a submodule is called: by all modules around it, if nothing else was noted.

    Raises:
        ValueError: one of these is a list, which is never called, and nothing was noted.
    """
    noted: dict[str, Part] = model.__dict__.get(PARTS, {})
    if name in noted:
        return noted[name]
    for parent in _parents(name):
        if isinstance(model.get_submodule(parent), nn.ModuleList | nn.ModuleDict):
            raise ValueError(
                f"part {name!r}: NNCF does not tell the items of the list {parent!r} apart, and "
                "how they are called was not noted; quantize with zaq_nncf.quantize, or load with "
                "example_input="
            )
    return Part(_parents(name), {}, {})


def run_inside(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """Run one submodule as the model runs it: with NNCF's hooks, which only the root triggers.

    Args:
        model: The root, wrapped by NNCF.
        name: Dotted name of the submodule; it takes one tensor.
        x: Its input.

    Raises:
        ValueError: see `part_of`.
    """
    part = part_of(model, name)
    with FunctionHookMode(model=model, hook_storage=hooks_of(model)) as mode:
        mode.op_calls.update(part.before)
        for around in part.around:  # the root is on the stack, the last one puts itself there
            mode.push_module_call_stack(model.get_submodule(around))
        try:
            out: Tensor = model.get_submodule(name)(x)
        finally:
            for _ in part.around:
                mode.pop_module_call_stack()
    return out


def operators_inside(model: nn.Module, name: str) -> list[str]:
    """Names of NNCF's hooks on the operators of a submodule."""
    part, prefix = part_of(model, name), name.replace(".", "/") + "/"
    hooks = []
    for hook, _ in hooks_of(model).named_hooks(remove_duplicate=False):
        operator = decode_hook_name(hook)[1]
        if part.holds(operator) if part.after else operator.startswith(prefix):
            hooks.append(hook)
    return hooks


# ---- The student ---------------------------------------------------------------------------------


class HookLayer(QuantLayer):
    """A layer whose weight passes a quantizer of ours in one of NNCF's hooks.

    Attributes:
        module: The layer; None where the weight is no convolution's and no linear layer's.
    """

    def __init__(self, model: nn.Module, path: str, hook: PWLQWeightQuantizer) -> None:
        name = layer_name(hook.weight)
        slot = Slot(f"{path}.grid", hook, "grid", hook.grid)
        owner = model.get_submodule(hook.weight.rpartition(".")[0])
        fits = isinstance(owner, LAYERS) and hook.weight.rpartition(".")[2] == "weight"
        self.module = owner if fits else None
        super().__init__(name, self.module, slot)
        self.model, self.target = model, hook.weight

    @property
    def parameter(self) -> nn.Parameter:
        """The weight's."""
        weight: Any = tensor_of(self.model, self.target)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        bias = None if self.module is None else self.module.bias
        return bias if isinstance(bias, Tensor) else None


class NNCFStudent(ModuleStudent):
    """A model from `zaq_nncf.quantize`, or from ``nncf.quantize`` with PWLQ registered."""

    interleaves = False  # a run patches the calls of all modules, and takes its patches back

    def layers(self) -> dict[str, QuantLayer]:
        """Layers with PWLQ weights, in the order of NNCF's hooks."""
        layers: dict[str, QuantLayer] = {}
        for path, module in self.model.named_modules():
            if isinstance(module, PWLQWeightQuantizer):
                layer = HookLayer(self.model, path, module)
                layers.setdefault(layer.name, layer)
        return layers

    def called_module(self, layer: QuantLayer) -> nn.Module | None:
        """See `ModuleStudent.called_module`."""
        return layer.module if isinstance(layer, HookLayer) else None

    def run(self, call: Call, before: Before | None = None) -> Any:
        """See `Student.run`."""
        return super().run(call, None if before is None else _unseen(before))

    def part(self, model: nn.Module, name: str, x: Tensor) -> Tensor:
        """Run a submodule with NNCF's hooks."""
        return run_inside(model, name, x)

    def passes_of(self, model: nn.Module, call: Call) -> Passes:
        """See `Student.passes_of`."""
        modules = named_modules(model, self.layers())
        return module_passes(model, modules, call, DisableTorchFunction)

    def quantizers_inside(self, name: str) -> list[nn.Module]:
        """The activation quantizers on a submodule's operators."""
        quantizers: list[nn.Module] = []
        storage = hooks_of(self.model)
        for hook in operators_inside(self.model, name):
            module = storage.get_submodule(hook)
            if isinstance(module, ActivationQuantizer) and module not in quantizers:
                quantizers.append(module)
        return quantizers


def _unseen(before: Before) -> Before:
    """NNCF counts and names every operator that it sees; these are none of the model's."""

    def call(layer: QuantLayer, x: Tensor) -> None:
        with DisableTorchFunction():
            before(layer, x)

    return call


def has_weights(model: nn.Module) -> bool:
    """Whether NNCF wrapped the model, with weight quantizers of ours."""
    return is_wrapped(model) and any(isinstance(m, PWLQWeightQuantizer) for m in model.modules())


def twin(student: nn.Module) -> nn.Module:
    """The float teacher: a deep copy that computes what the float model computed.

    Quantizers are off, NNCF's own ones too, and biases are as they were before correction. Every
    module has the name that it has in the student. Take it before the student is trained.

    Raises:
        ValueError: the model holds no quantizer of ours.
    """
    hooks_of(student)  # an error if the model is not NNCF's
    if not has_weights(student):
        raise ValueError(
            f"twin: this {type(student).__name__} holds no PWLQ weights; pass what "
            "zaq_nncf.quantize returned, before it is stripped."
        )
    return NNCFStudent(student).twin()


register_student(has_weights, NNCFStudent)
