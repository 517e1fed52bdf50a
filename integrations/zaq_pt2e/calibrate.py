"""Calibration in one call, and bias correction layer after layer.

The stock way works, too: run batches through the prepared model. Conversion then corrects biases by
the mean inputs of the float model; `correct_bias` does it by those of the quantized one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, map_arg

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.pwlq import quantize
from zaq_pt2e._compat import is_watcher
from zaq_pt2e.batch_norm import batch_norms, set_training
from zaq_pt2e.bias import InputMean, add_to_bias, mean_shift, restore_biases
from zaq_pt2e.conversion import WeightModule
from zaq_pt2e.folding import fused_norm
from zaq_pt2e.graph import (
    WEIGHTED,
    add_note,
    argument,
    constant_value,
    note_of,
    tensor_at,
)


def calibrate(
    prepared: GraphModule, batches: Iterable[Any], *, bias_correction: bool = True
) -> GraphModule:
    """Run calibration batches through a prepared model, freeze the ranges, correct the biases.

    Ranges come from float activations. Afterwards fake-quantizers are on, their observers are off,
    and the model is in evaluation mode.

    Args:
        prepared: From prepare_pt2e or prepare_qat_pt2e; changed in place.
        batches: Inputs: tensors, or tuples whose first entries are the model's inputs (labels
            behind them are ignored). Kept in memory for the bias correction.
        bias_correction: Correct the biases, see `correct_bias`.

    Returns:
        The prepared model.

    Raises:
        ValueError: no batches, or a model that was not prepared.
    """
    held = held_batches(prepared, batches, "calibrate")
    set_training(prepared, False)
    switches: list[Any] = [
        m for m in prepared.modules() if is_watcher(m) and hasattr(m, "disable_fake_quant")
    ]
    with torch.no_grad():
        for module in switches:
            module.enable_observer()
            module.disable_fake_quant()
        for inputs in held:
            prepared(*inputs)
            for module in switches:
                if isinstance(module, PWLQPerChannelFakeQuantize):
                    module.disable_observer()  # a weight does not change from batch to batch
        for module in switches:
            module.disable_observer()
            module.enable_fake_quant()
    if bias_correction:
        correct_bias(prepared, held)
    return prepared


def held_batches(prepared: GraphModule, batches: Iterable[Any], who: str) -> list[tuple[Any, ...]]:
    """The model's inputs of every batch, labels left out.

    Raises:
        ValueError: no batches, or a model that was not prepared.
        TypeError: a batch is no tensor and no tuple.
    """
    if not any(is_watcher(module) for module in prepared.modules()):
        raise ValueError(
            f"{who}: expected a model from prepare_pt2e or prepare_qat_pt2e; this one holds "
            "neither observers nor fake-quantizers."
        )
    wanted = sum(node.op == "placeholder" for node in prepared.graph.nodes)
    held = []
    for batch in batches:
        if isinstance(batch, Tensor):
            held.append((batch,))
        elif isinstance(batch, tuple | list) and batch:
            held.append(tuple(batch[:wanted]))
        else:
            raise TypeError(
                f"{who}: a batch must be a tensor, or a tuple that begins with the model's "
                f"inputs; got {type(batch).__name__}."
            )
    if not held:
        raise ValueError(f"{who} got no batches; give at least one batch of inputs.")
    return held


@torch.no_grad()
def correct_bias(prepared: GraphModule, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Remove the mean error that quantized weights cause, layer after layer.

    For each layer in order of execution, with x from the quantized layers before it:
    ``bias += E[(W - W^) x]`` per output channel (Nagel et al., ICCV 2019, section 4.2). Earlier
    corrections are taken back first, and conversion does not correct these layers again.

    Args:
        prepared: A calibrated model; changed in place.
        batches: As in `calibrate`. Activations of all batches are in memory, for as long as a
            later layer needs them.

    Returns:
        What was added to each layer's bias.

    Raises:
        ValueError: no batches, nothing to correct, or batches that differ in shape.
    """
    held = held_batches(prepared, batches, "correct_bias")
    restore_biases(prepared)
    with _evaluation(prepared):
        added = _Corrector(prepared, len(held)).run(held)
    prepared.recompile()
    if not added:
        raise ValueError(
            "correct_bias: no layer of this model has weights quantized by this package, so there "
            "is nothing to correct. Was it prepared with PWLQQuantizer or with_pwlq?"
        )
    return added


@contextmanager
def _evaluation(prepared: GraphModule) -> Iterator[None]:
    """BatchNorm and dropout in evaluation mode; BatchNorm's own mode comes back."""
    modes = [(node, bool(node.args[5])) for node in batch_norms(prepared)]
    set_training(prepared, False)
    try:
        yield
    finally:
        if any(training for _, training in modes):
            set_training(prepared, True)


class _Corrector:
    """Runs all batches through the graph node by node, correcting each layer on the way."""

    def __init__(self, prepared: GraphModule, count: int) -> None:
        self.prepared, self.count = prepared, count
        self.values: dict[Node, list[Any]] = {}
        self.added: dict[str, Tensor] = {}

    def run(self, batches: list[tuple[Any, ...]]) -> dict[str, Tensor]:
        nodes = list(self.prepared.graph.nodes)
        last = {used: node for node in nodes for used in node.all_input_nodes}
        inputs = iter(zip(*batches, strict=True))
        for node in nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                self.values[node] = list(next(inputs))
            elif node.op != "get_attr":
                self.values[node] = self._evaluate(node)
            for used in node.all_input_nodes:
                if last.get(used) is node:
                    self.values.pop(used, None)
        return self.added

    def _evaluate(self, node: Node) -> list[Any]:
        if node.op == "call_module":
            module = self.prepared.get_submodule(str(node.target))
            if isinstance(module, InputMean) or not is_watcher(module):
                return [None] * self.count  # the host's guards
            return [self._quantized(module, node, i) for i in range(self.count)]
        if node.target in WEIGHTED:
            self._correct(node)
        return [self._call(node, i) for i in range(self.count)]

    def _call(self, node: Node, batch: int) -> Any:
        args, kwargs = map_arg(
            (node.args, dict(node.kwargs)), lambda used: self._value(used, batch)
        )
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _value(self, node: Node, batch: int) -> Any:
        if node.op == "get_attr":  # read now: corrections change them
            return tensor_at(self.prepared, str(node.target))
        return self.values[node][batch]

    def _quantized(self, module: Any, node: Node, batch: int) -> Any:
        """What stands in an observer's place after conversion."""
        x = self._value(node.args[0], batch)  # type: ignore[arg-type]
        if hasattr(module, "fake_quant_enabled"):
            return module(x)
        if isinstance(module, WeightModule):
            return quantize(x, module.spec, module.ch_axis).dequantize()
        if getattr(module, "quant_min", None) is None:
            return x
        scale, zero_point = module.calculate_qparams()
        low, high = module.quant_min, module.quant_max
        if scale.numel() > 1:
            return torch.fake_quantize_per_channel_affine(
                x, scale, zero_point.int(), int(module.ch_axis), low, high
            )
        return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), low, high)

    def _correct(self, node: Node) -> None:
        name = str(note_of(node).get("name", node.name))
        quantizer, x = argument(node, 1), argument(node, 0)
        if not isinstance(quantizer, Node) or quantizer.op != "call_module" or name in self.added:
            return
        module = self.prepared.get_submodule(str(quantizer.target))
        weight = constant_value(self.prepared, quantizer.args[0])
        if not isinstance(module, WeightModule) or weight is None:
            return
        mean = InputMean()
        for batch in range(self.count):
            mean.add(self._value(x, batch))
        if mean.remark is not None:
            raise ValueError(f"{name}: {mean.remark}; give batches of one shape.")
        shift = mean_shift(node, weight - self._value(quantizer, 0), mean.mean)
        norm = fused_norm(node, quantizer.args[0])
        if norm is not None:
            # It divides by gamma / sqrt(var + eps) and multiplies again: the shift goes behind.
            add_to_bias(self.prepared, norm.norm, shift)
        else:
            add_to_bias(self.prepared, node, shift)
        add_note(node, input_mean=None, remark="bias corrected")
        self.added[name] = shift
