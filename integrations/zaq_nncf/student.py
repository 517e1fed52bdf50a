"""Students of NNCF: quantizers live under the root and run in the root's forward pass only."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zaq_nncf._compat import (
    DisableTorchFunction,
    hooks_of,
    is_wrapped,
)
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.parts import operators_inside, run_inside
from zaq_nncf.settings import layer_name
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer, tensor_of
from zaq_plugin.layers import LAYERS
from zaq_plugin.student import ModuleStudent, QuantLayer, register_student
from zaq_plugin.student.batches import Call
from zaq_plugin.student.fake_quantizers import Slot
from zaq_plugin.student.recording import Passes, module_passes, named_modules
from zaq_plugin.student.view import Before


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
