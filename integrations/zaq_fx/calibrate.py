"""Calibration, and bias correction from activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_fx._compat import is_watcher, preactivation
from zaq_fx.backend import with_parameter
from zaq_fx.followers import follow
from zaq_fx.layers import Layer, layers_of
from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize


def calibrate(
    prepared: fx.GraphModule, batches: Iterable[Any], *, bias_correction: bool = True
) -> fx.GraphModule:
    """Run calibration batches through a prepared model, freeze the ranges, correct the biases.

    Ranges come from float activations. Afterwards fake-quantizers are on and observers are off.

    Args:
        prepared: From prepare_fx or prepare_qat_fx; changed in place.
        batches: Inputs: tensors, or tuples whose first entries are the model's inputs (labels
            behind them are ignored). Kept in memory for the bias correction.
        bias_correction: Correct the biases, see `correct_bias`.

    Returns:
        The prepared model.

    Raises:
        ValueError: no batches, or a model that was not prepared.
    """
    held = [_inputs(prepared, batch) for batch in batches]
    if not held:
        raise ValueError("calibrate got no batches; without data there are no ranges.")
    follow(prepared)
    with evaluation(prepared):
        _switch(prepared, observe=True, quantize=False)
        for inputs in held:
            prepared(*inputs)
            for module in prepared.modules():
                if isinstance(module, PWLQPerChannelFakeQuantize):
                    module.disable_observer()  # a weight does not change from batch to batch
        _switch(prepared, observe=False, quantize=True)
    if bias_correction:
        correct_bias(prepared, held)
    return prepared


@torch.no_grad()
def correct_bias(prepared: fx.GraphModule, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Remove the mean error that quantized weights cause, layer after layer.

    For each layer in order of execution, with x from the quantized layers before it:
    ``bias += E[W x] - E[W^ x]`` per output channel. One pass through the graph; two runs of each
    layer. Worth more than the number format at 4 bits, see the README.

    Args:
        prepared: A calibrated model; changed in place (the float model it came from is not).
        batches: As in `calibrate`. All activations of a layer are in memory at once.

    Returns:
        What was added to each layer's bias.

    Raises:
        ValueError: no batches, or nothing to correct.
    """
    held = [_inputs(prepared, batch) for batch in batches]
    if not held:
        raise ValueError("correct_bias got no batches.")
    layers = {layer.name: layer for layer in layers_of(prepared) if layer.spec is not None}
    if not layers:
        raise ValueError(
            "correct_bias: no layer of this model is quantized by this package, so there is "
            "nothing to correct. Was it prepared with pwlq_qconfig_mapping?"
        )
    with evaluation(prepared):
        return _Corrector(prepared, layers).run(held)


class _Corrector:
    """Runs all batches through the graph node by node."""

    def __init__(self, prepared: fx.GraphModule, layers: dict[str, Layer]) -> None:
        self.prepared = prepared
        self.layers = layers
        self.added: dict[str, Tensor] = {}

    def run(self, batches: list[tuple[Any, ...]]) -> dict[str, Tensor]:
        graph = self.prepared.graph
        last = {}
        for node in graph.nodes:
            for used in node.all_input_nodes:
                last[used] = node
        values: dict[fx.Node, list[Any]] = {}
        arguments = iter(range(len(batches[0])))
        for node in graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                position = next(arguments, None)
                values[node] = [
                    node.args[0] if position is None else batch[position] for batch in batches
                ]
            else:
                values[node] = self._evaluate(node, values, len(batches))
            for used in node.all_input_nodes:
                if last[used] is node:
                    del values[used]
        return self.added

    def _evaluate(self, node: fx.Node, values: dict[fx.Node, list[Any]], count: int) -> list[Any]:
        name = str(node.target)
        arguments = [_arguments(node, values, i) for i in range(count)]
        call: Callable[..., Any]
        if node.op == "call_module":
            module = self.prepared.get_submodule(name)
            if name in self.layers and len(node.args) == 1 and not node.kwargs:
                return self._layer(name, [args[0] for args, _ in arguments])
            call = _fake_quantizer(module) if is_watcher(module) else module
        elif node.op == "get_attr":
            value: Any = self.prepared
            for part in name.split("."):
                value = getattr(value, part)
            return [value] * count
        elif node.op == "call_method":
            return [getattr(args[0], name)(*args[1:], **kwargs) for args, kwargs in arguments]
        else:
            call = node.target  # type: ignore[assignment]
        return [call(*args, **kwargs) for args, kwargs in arguments]

    def _layer(self, name: str, inputs: list[Tensor]) -> list[Tensor]:
        if name not in self.added:
            self.added[name] = self._correct(self.layers[name], inputs)
        return [self._quantized(name)(x) for x in inputs]

    def _quantized(self, name: str) -> nn.Module:
        """The layer with its weight on the levels."""
        module = self.prepared.get_submodule(name)
        if hasattr(module, "weight_fake_quant"):
            return module
        weight = self.layers[name].quantized().dequantize()
        if isinstance(module, nn.Sequential):
            return nn.Sequential(with_parameter(module[0], "weight", weight), *list(module)[1:])
        return with_parameter(module, "weight", weight)

    def _correct(self, layer: Layer, inputs: list[Tensor]) -> Tensor:
        module = self.prepared.get_submodule(layer.name)
        if hasattr(module, "weight_fake_quant"):
            fake: Any = module.weight_fake_quant

            def quantized(x: Tensor) -> Tensor:
                fake.enable_fake_quant()
                return preactivation(module, x)

            def floating(x: Tensor) -> Tensor:
                fake.disable_fake_quant()
                return preactivation(module, x)
        else:
            plain = module[0] if isinstance(module, nn.Sequential) else module
            snapped = with_parameter(plain, "weight", layer.quantized().dequantize())

            def quantized(x: Tensor) -> Tensor:
                return snapped(x)

            def floating(x: Tensor) -> Tensor:
                return plain(x)

        weight: Any = layer.root.weight
        channels = 1 - weight.dim()  # counted from the end: batches are optional
        total: Any = 0.0
        elements = 0
        for x in inputs:
            error = (floating(x) - quantized(x)).movedim(channels, 0)
            error = error.reshape(len(error), -1)
            total = total + error.double().sum(1)
            elements += error.shape[1]
        if hasattr(module, "weight_fake_quant"):
            fake.enable_fake_quant()
        added = (total / elements).float()
        add_to_bias(self.prepared, layer.name, added)
        return added


def add_to_bias(prepared: fx.GraphModule, name: str, added: Tensor) -> None:
    """Add to a layer's bias without touching parameters that the float model shares."""
    module = prepared.get_submodule(name)
    norm = getattr(module, "bn", None)
    if norm is not None:
        norm._parameters["bias"] = nn.Parameter(norm.bias.detach() + added)
    elif hasattr(module, "weight_fake_quant"):
        module._parameters["bias"] = nn.Parameter(_plus(module.bias, added))
    elif isinstance(module, nn.Sequential):
        module[0] = with_parameter(module[0], "bias", _plus(module[0].bias, added))
    else:
        prepared.set_submodule(name, with_parameter(module, "bias", _plus(module.bias, added)))


def give_biases(prepared: fx.GraphModule) -> None:
    """Give a bias of zero to the quantized layers that have none.

    So the bias correction changes no shapes, and a calibrated state loads into a fresh model.
    """
    for layer in list(layers_of(prepared)):
        root: Any = layer.root
        if layer.spec is not None and root.bias is None:
            channels = root.out_features if isinstance(root, nn.Linear) else root.out_channels
            add_to_bias(prepared, layer.name, root.weight.detach().new_zeros(channels))


def _arguments(node: fx.Node, values: dict[fx.Node, list[Any]], batch: int) -> tuple[Any, Any]:
    """Positional and keyword arguments of a node for one batch."""

    def value(used: fx.Node) -> Any:
        return values[used][batch]

    return fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)


def _plus(bias: Any, added: Tensor) -> Tensor:
    return added if bias is None else bias.detach() + added


def _fake_quantizer(watcher: Any) -> Callable[[Tensor], Tensor]:
    """What a watcher's place in the graph computes after conversion."""
    if hasattr(watcher, "fake_quant_enabled"):
        return watcher
    low, high = getattr(watcher, "quant_min", None), getattr(watcher, "quant_max", None)
    if low is None or high is None or not hasattr(watcher, "calculate_qparams"):
        return lambda x: x
    scales, zero_points = watcher.calculate_qparams()
    if scales.numel() > 1:  # a weight computed in the graph
        axis = int(watcher.ch_axis)
        return lambda x: torch.fake_quantize_per_channel_affine(
            x, scales, zero_points, axis, low, high
        )
    scale, zero_point = float(scales), int(zero_points)
    return lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _switch(prepared: nn.Module, *, observe: bool, quantize: bool) -> None:
    for module in prepared.modules():
        if hasattr(module, "fake_quant_enabled") and hasattr(module, "observer_enabled"):
            module.enable_observer(observe)  # type: ignore[operator]
            module.enable_fake_quant(quantize)  # type: ignore[operator]


def _inputs(prepared: fx.GraphModule, batch: Any) -> tuple[Any, ...]:
    """The model's inputs of one batch, labels left out."""
    if isinstance(batch, Tensor):
        return (batch,)
    if not isinstance(batch, tuple | list) or not batch:
        raise TypeError(
            "a batch must be a tensor, or a tuple that begins with the model's inputs; got "
            f"{type(batch).__name__}."
        )
    wanted = sum(n.op == "placeholder" for n in prepared.graph.nodes)
    return tuple(batch[:wanted])
