"""Students of torch.ao's FX mode: where their weights, fake-quantizers and biases are.

A model prepared for training carries fake-quantizers in its layers. One prepared for calibration
has plain layers, whose weights the host observes in conversion only; here they become the host's
layers for training, which conversion takes as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.nn.qat as nnqat
from torch import Tensor, fx, nn

from zaq_fx._compat import is_prepared, is_watcher
from zaq_fx.convolutions import TRAINED
from zaq_fx.followers import follow
from zaq_fx.layers import Layer, layers_of
from zaq_plugin._host_module import HostModule
from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.layers import out_features
from zaq_plugin.student import ModuleStudent, QuantLayer, register_student
from zaq_plugin.student.fake_quantizers import carried_quantizer, is_fake_quantizer
from zaq_plugin.student.module_student import CarriedLayer, carried_layer

WITH_BATCH_NORM = (nniqat.ConvBn1d, nniqat.ConvBn2d, nniqat.ConvBn3d, nniqat.LinearBn1d)
CARRIERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nnqat.Conv1d,
    nn.Conv2d: nnqat.Conv2d,
    nn.Conv3d: nnqat.Conv3d,
    nn.Linear: nnqat.Linear,
    nni.ConvReLU1d: nniqat.ConvReLU1d,
    nni.ConvReLU2d: nniqat.ConvReLU2d,
    nni.ConvReLU3d: nniqat.ConvReLU3d,
    nni.LinearReLU: nniqat.LinearReLU,
    **TRAINED,
}
"""The host's module for training in the place of a float one."""


class BatchNormLayer(CarriedLayer):
    """A layer with its BatchNorm, folded on the fly: the fake-quantizer sees the product."""

    @property
    def weight(self) -> Tensor:
        """Weight times ``gamma / sqrt(var + eps)`` per channel."""
        norm: Any = self.module.bn
        factor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        self.factor = factor.reshape(-1, *[1] * (self.parameter.dim() - 1))
        return self.parameter.detach() * self.factor

    def notice(self, seen: Tensor) -> None:
        """Nothing: the factor is known."""

    def write(self, values: Tensor) -> None:
        """See `QuantLayer.write`; BatchNorm stays as it is."""
        assert self.weight is not None  # the factor of this moment
        super().write(values)

    @property
    def bias(self) -> Tensor | None:
        """The BatchNorm's shift, which is what is added behind the product."""
        norm: Any = self.module.bn
        bias = norm.bias
        return bias if isinstance(bias, Tensor) else None


class FXStudent(ModuleStudent):
    """A model from prepare_fx or prepare_qat_fx.

    Building it gives every layer with a weight of ours a fake-quantizer, a weight and a bias of its
    own: the host shares them with the user's model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if not isinstance(model, fx.GraphModule):
            raise TypeError(f"expected a GraphModule of torch.fx; got {type(model).__name__}")
        self.prepared = model
        owned: dict[int, nn.Parameter] = {}
        for layer in list(layers_of(model)):
            if layer.spec is not None:
                _carry(model, layer, owned)
        _untie_biases(self.layers().values(), model)
        follow(model)

    def layers(self) -> dict[str, QuantLayer]:
        """Layers in order of execution, by the name under which the graph calls them."""
        layers: dict[str, QuantLayer] = {}
        modules = dict(self.prepared.named_modules(remove_duplicate=False))
        for node in self.prepared.graph.nodes:
            name = str(node.target)
            if node.op != "call_module" or name in layers:
                continue
            layer = carried_layer(name, modules[name])
            if layer is not None and isinstance(modules[name], WITH_BATCH_NORM):
                layer = BatchNormLayer(name, modules[name], layer.slot)
            if layer is not None:
                layers[name] = layer
        return layers

    def twin(self) -> nn.Module:
        """See `Student.twin`; observers without a switch become identities."""
        teacher = super().twin()
        for name, module in list(teacher.named_modules(remove_duplicate=False)):
            owner, _, leaf = name.rpartition(".")
            if not name or not is_watcher(module) or is_fake_quantizer(module):
                continue
            if not is_fake_quantizer(teacher.get_submodule(owner)):
                setattr(teacher.get_submodule(owner), leaf, nn.Identity())
        return teacher


def _carry(prepared: fx.GraphModule, layer: Layer, owned: dict[int, nn.Parameter]) -> None:
    """Let a layer carry its weight's fake-quantizer, and see that it has a bias.

    Args:
        layer: Of the prepared model.
        owned: By the identity of a weight, its copy: tied weights stay tied.
    """
    module: Any = layer.module
    if carried_quantizer(module) is not None:
        if not isinstance(module, WITH_BATCH_NORM) and module.bias is None:
            module.bias = nn.Parameter(module.weight.detach().new_zeros(out_features(module)))
        return
    plain: Any = layer.root
    carrier = CARRIERS.get(type(module))
    if carrier is None:
        return  # fused with something that the host has no module for training for
    weight, bias = plain.weight, plain.bias
    if id(weight) not in owned:
        owned[id(weight)] = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    carried: Any = copy.copy(plain)
    carried.__class__ = carrier
    carried._parameters, carried._modules = dict(plain._parameters), dict(plain._modules)
    carried._parameters["weight"] = owned[id(weight)]
    value = weight.new_zeros(out_features(plain)) if bias is None else bias
    carried._parameters["bias"] = nn.Parameter(value.detach().clone(), weight.requires_grad)
    observer = layer.watcher
    quantizer = PWLQPerChannelFakeQuantize(
        observer.spec, observer.ch_axis, dtype=observer.dtype, fake_quant=False
    )
    quantizer.disable_observer()  # breakpoints are solved once, at the first forward
    carried.weight_fake_quant = quantizer.to(weight.device).train(plain.training)
    carried.qconfig = layer.qconfig
    prepared.set_submodule(layer.name, carried)


class BiasMemory(HostModule):
    """What bias correction took out of a layer that shares its fake-quantizer with another one."""

    resizable = optional = ("bias_shift",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias_shift", torch.empty(0))


def _untie_biases(layers: Iterable[QuantLayer], model: nn.Module) -> None:
    """A bias of its own, and a memory of it, for every call of a layer: each sees other inputs.

    What functions read, see `zaq_fx.functional`, is no call's own either.
    """
    read = {id(parameter) for parameter in model._parameters.values()}
    biases: set[int] = set(read)
    quantizers: set[int] = set()
    for layer in layers:
        module: Any = layer.module if isinstance(layer, CarriedLayer) else None
        if module is None or layer.bias is None:
            continue
        owner = module.bn if isinstance(layer, BatchNormLayer) else module
        if id(layer.bias) in (read if owner is not module else biases):
            owner.bias = nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
        if id(layer.quantizer) in quantizers and not hasattr(module, "bias_memory"):
            module.bias_memory = BiasMemory().to(layer.bias.device)
        biases.add(id(layer.bias))
        quantizers.add(id(layer.quantizer))


def student(prepared: nn.Module, who: str) -> FXStudent:
    """The view of a prepared model.

    Raises:
        ValueError: the model was not prepared, or nothing of it has weights of this package.
    """
    if not is_prepared(prepared):
        raise ValueError(
            f"{who} expected a model from prepare_fx or prepare_qat_fx; got "
            f"{type(prepared).__name__} that was not prepared (or is already converted)."
        )
    view = FXStudent(prepared)
    if not view.layers():
        raise ValueError(
            f"{who}: no layer of this model is quantized by this package, so there is nothing to "
            "correct. Was it prepared with pwlq_qconfig_mapping?"
        )
    return view


register_student(is_prepared, FXStudent)
