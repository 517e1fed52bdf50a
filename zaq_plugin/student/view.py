"""`Student`: one view of a prepared model, whatever host prepared it.

    student = student_of(model)
    for name, layer in student.layers().items(): ...

Algorithms (calibration, bias correction, rounding, reconstruction, training) are written once, on
this view. A host's integration registers its own kind of student when it is imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zaq_plugin.layers import hooked
from zaq_plugin.student.batches import Call
from zaq_plugin.student.fake_quantizers import set_switches
from zaq_plugin.student.layer import QuantLayer
from zaq_plugin.student.modes import evaluating, float_copy
from zaq_plugin.student.recording import Passes, module_passes, named_modules

Before = Callable[[QuantLayer, Tensor], None]
"""Called with a layer and its input, as it multiplies it, the moment before the layer runs."""


class Student(ABC):
    """A prepared model and its quantized layers.

    Building one makes the model ready for every algorithm, in place and without changing what it
    computes: weights get fake-quantizers and tensors of their own. Building it again finds all as
    it was.

    Args:
        model: Prepared by the host.

    Attributes:
        model: The same model.
        interleaves: Whether several runs may be under way at the same time, one going on while the
            others wait in front of a layer.
    """

    interleaves: ClassVar[bool] = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @abstractmethod
    def layers(self) -> dict[str, QuantLayer]:
        """Every layer whose weight is fake-quantized, by name."""

    @abstractmethod
    def run(self, call: Call, before: Before | None = None) -> Any:
        """The model's answer to one batch; ``before`` may change a layer, or raise to leave."""

    def twin(self) -> nn.Module:
        """The teacher P: a deep copy that computes the float model's function.

        Fake-quantizers and observers are off, bias corrections taken back, BatchNorm is frozen, no
        parameter needs a gradient, and every module has the name that it has in the student. The
        weights are the student's: take it before they are moved or trained.
        """
        teacher = float_copy(self.model)
        type(self)(teacher).restore_biases()
        return teacher

    def restore_biases(self) -> None:
        """Take back every bias correction."""
        for layer in self.layers().values():
            layer.restore_bias()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradients and evaluation mode; every mode comes back afterwards."""
        with evaluating(self.model):
            yield

    def switch(self, *, observe: bool | None = None, quantize: bool | None = None) -> None:
        """Turn all observers, or all fake quantization, on or off; None leaves them."""
        set_switches(self.model, observe=observe, quantize=quantize)

    def part(self, model: nn.Module, name: str, x: Tensor) -> Tensor:
        """Run a submodule of the student, or of its twin, as the whole model would run it."""
        out: Tensor = model.get_submodule(name)(x)
        return out

    def passes(self, call: Call) -> Passes:
        """What every layer is given and what it makes on one batch; see `Passes`."""
        return self.passes_of(self.model, call)

    def passes_of(self, model: nn.Module, call: Call) -> Passes:
        """The same of another model with layers of these names: the float one, a converted one."""
        return module_passes(model, named_modules(model, self.layers()), call)

    def quantizers_inside(self, name: str) -> list[nn.Module]:
        """Fake-quantizers of a submodule's operators that are not among its own modules."""
        return []


_KINDS: list[tuple[Callable[[nn.Module], bool], Callable[[nn.Module], Student]]] = []


def register_student(
    recognises: Callable[[nn.Module], bool], build: Callable[[nn.Module], Student]
) -> None:
    """Let every algorithm know a host's students; the latest kind is asked first.

    Args:
        recognises: Whether a model, or its twin, is of this kind.
        build: Makes the view.
    """
    _KINDS.insert(0, (recognises, build))


def student_of(model: nn.Module) -> Student:
    """The view of a prepared model.

    Raises:
        TypeError: If it is no module.
        ValueError: If it is of no kind that is known, or nothing of it is fake-quantized.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a prepared model, an nn.Module; got {type(model).__name__}")
    for recognises, build in _KINDS:
        if recognises(model):
            return build(model)
    raise ValueError(
        f"nothing was quantized: {type(model).__name__} has no fake-quantized weights; pass what "
        "simulate() returned, or a model that its host has prepared with PWLQ weights: by "
        "prepare_fx, prepare_pt2e or zaq_nncf.quantize, with that integration imported."
    )


def twin(model: nn.Module) -> nn.Module:
    """The float teacher of a prepared model; see `Student.twin`."""
    if any(recognises(model) for recognises, _ in _KINDS):
        return student_of(model).twin()
    return float_copy(model)


@torch.no_grad()
def reached_layers(model: nn.Module, example: Tensor) -> list[QuantLayer]:
    """The quantized layers of a student whose fake-quantizers run on an example.

    Args:
        model: A prepared model.
        example: A batch of images.

    Raises:
        ValueError: If nothing of the model is fake-quantized.
    """
    layers = student_of(model).layers()
    seen: dict[int, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[id(module)] = inputs[0]

    handles = [x.quantizer.register_forward_pre_hook(keep) for x in layers.values()]
    with hooked(handles):
        model(example.clone())
    quant_layers = []
    for layer in layers.values():
        if id(layer.quantizer) in seen:
            layer.notice(seen[id(layer.quantizer)])
            quant_layers.append(layer)
    return quant_layers


class FloatWeights:
    """The weights that a student's layers have in the float model.

    Args:
        reference: The float model, with its BatchNorms folded, or a twin taken before weights were
            moved; None takes the student's own weights.
    """

    def __init__(self, reference: nn.Module | None) -> None:
        self.reference = reference
        prepared = reference is not None and any(fits(reference) for fits, _ in _KINDS)
        self._layers = student_of(reference).layers() if prepared and reference else None

    def of(self, layer: QuantLayer) -> Tensor:
        """The weight of a layer; detached.

        Raises:
            ValueError: If the float model has no such layer, or its weight has another shape.
        """
        if self.reference is None:
            return layer.weight
        way_out = "pass the model that was prepared, with its BatchNorms folded"
        weight: Any = None
        if self._layers is not None:
            weight = self._layers[layer.name].weight if layer.name in self._layers else None
        else:
            with suppress(AttributeError):
                weight = self.reference.get_submodule(layer.name).weight
        if not isinstance(weight, Tensor):
            raise ValueError(f"the float model has no layer {layer.name!r}; {way_out}")
        if weight.shape != layer.weight.shape:
            raise ValueError(
                f"the float model's weight of layer {layer.name!r} is {tuple(weight.shape)}, the "
                f"student's {tuple(layer.weight.shape)}; {way_out}"
            )
        return weight.detach().to(layer.weight.device)
