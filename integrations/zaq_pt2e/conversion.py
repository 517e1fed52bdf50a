"""What convert_pt2e asks of a weight's observer: ``convert(model, node)``.

The weight is put on its levels, all of which are ``scale * int8``, and the host's own quantize and
dequantize operators follow. They reproduce the levels bit for bit, and everything after that
(constant folding, lowering) is the host's own work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase

from zaq_plugin.fake_quantize import (
    ActivationFakeQuantize,
    PWLQActivationFakeQuantize,
    PWLQPerChannelFakeQuantize,
)
from zaq_plugin.observers import (
    MinMaxObserver,
    PercentileObserver,
    PWLQPerChannelObserver,
    TopKMedianObserver,
)
from zaq_plugin.pwlq import PWLQTensor, quantize
from zaq_plugin.report.records import weight_facts
from zaq_pt2e._compat import QUANTIZED_LIBRARY, prepared_for_qat, register_int8_kernels
from zaq_pt2e.batch_norm import SNAPPED, fold, fold_rest, fused_norm
from zaq_pt2e.bias import InputMean, add_to_bias, input_mean, mean_shift
from zaq_pt2e.graph import (
    WEIGHTED,
    add_note,
    constant_value,
    new_tensor,
    note_of,
    root_attribute,
)

assert QUANTIZED_LIBRARY is not None  # its import registers the operators used here

_ops = torch.ops.quantized_decomposed

_RANGES = (MinMaxObserver, PercentileObserver, TopKMedianObserver)
_OBSERVERS = (*_RANGES, PWLQPerChannelObserver, InputMean)
_ACTIVATIONS = (*_RANGES, ActivationFakeQuantize, PWLQActivationFakeQuantize)
_FAKE_QUANTIZERS = (
    ActivationFakeQuantize,
    PWLQActivationFakeQuantize,
    PWLQPerChannelFakeQuantize,
)
WeightModule = PWLQPerChannelObserver | PWLQPerChannelFakeQuantize


def convert_weight(module: WeightModule, model: GraphModule, node: Node) -> None:
    """Replace a weight's observer or fake-quantizer by stock quantize and dequantize nodes.

    Args:
        module: The observer or fake-quantizer.
        model: The prepared model, which the host is converting.
        node: The node that calls the module.

    Raises:
        ValueError: the weight depends on the model's input, the format has no int8 levels, or the
            model was prepared for training with observers in place of fake-quantizers.
    """
    users = [user for user in node.users if user.target in WEIGHTED]
    names = ", ".join(str(note_of(u).get("name", u.name)) for u in users) or node.name
    if prepared_for_qat(model) and not _quantizes(module):
        raise ValueError(
            f"{names}: the model comes from prepare_qat_pt2e, but its quantizer was made for "
            "calibration only, so that no weight was quantized during training. Use "
            "PWLQQuantizer(..., qat=True), or prepare_pt2e."
        )
    source = node.args[0]
    value = constant_value(model, source)
    if value is None or not isinstance(source, Node):
        raise ValueError(
            f"{names}: the weight is computed from the model's input, so it has no fixed levels. "
            "Exclude the layer: PWLQQuantizer(exclude=[...])."
        )
    register_int8_kernels()  # for those who lower the model next
    if prepared_for_qat(model):
        _fold_rest_once(model)
    packed = _packed(module, value, names)
    snapped = packed.dequantize()
    _emit(model, node, packed, _tensor_name(source, users))
    for user in users:
        norm = fused_norm(user, source)
        if norm is not None:
            fold(model, norm)
        facts = weight_facts(packed.spec, packed)
        add_note(user, **facts, **_corrected(model, user, value - snapped))


def _quantizes(module: WeightModule) -> bool:
    return isinstance(module, PWLQPerChannelFakeQuantize) and bool(module.fake_quant_enabled[0])


def _fold_rest_once(model: GraphModule) -> None:
    """At the first weight of a model: the host calls us weight by weight, and tells no end."""
    if not model.meta.get("zaq_folded"):
        model.meta["zaq_folded"] = True
        fold_rest(model)


def _packed(module: WeightModule, value: Tensor, names: str) -> PWLQTensor:
    try:
        if isinstance(module, PWLQPerChannelFakeQuantize):
            module.eval()(value)  # solves for this very weight, if its observer is on
        else:
            module.observe(value)
        module.calculate_qparams()  # for its checks
        return quantize(value, module.spec, module.ch_axis, edges=module.edges.detach())
    except (ValueError, TypeError) as error:
        raise type(error)(f"{names}: {error}") from error


def _tensor_name(source: Node, users: list[Node]) -> str:
    """A weight's name, by which audit and lowering know its layer."""
    for user in users:
        note = note_of(user)
        if note.get("original"):  # one of several uses of one tensor
            return f"{note['name']}.weight"
    return root_attribute(source) or "weight"


def _emit(model: GraphModule, node: Node, packed: PWLQTensor, name: str) -> None:
    """Snapped weight, quantize and dequantize, in place of the observer's node."""
    graph, source = model.graph, node.args[0]
    # Without dots: constant folding removes float weights at the top only.
    flat = f"{name.replace('.', '_')}{SNAPPED}"
    weight = new_tensor(model, flat, nn.Parameter(packed.dequantize()), node)
    weight.meta = dict(source.meta) if isinstance(source, Node) else {}
    grid: tuple[object, ...]
    if packed.axis is None:
        quantize_op = _ops.quantize_per_tensor.default
        dequantize_op = _ops.dequantize_per_tensor.default
        grid = (float(packed.scale), 0, -127, 127, torch.int8)
    else:
        quantize_op = _ops.quantize_per_channel.default
        dequantize_op = _ops.dequantize_per_channel.default
        zeros = torch.zeros_like(packed.scale, dtype=torch.int32)
        scale = new_tensor(model, f"{name}_scale", packed.scale.clone(), node)
        zero_point = new_tensor(model, f"{name}_zero_point", zeros, node)
        grid = (scale, zero_point, packed.axis, -127, 127, torch.int8)
    with graph.inserting_before(node):
        codes = graph.call_function(quantize_op, (weight, *grid))
        values = graph.call_function(dequantize_op, (codes, *grid))
    if "val" in node.meta:
        values.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(values)
    graph.erase_node(node)


def _corrected(model: GraphModule, user: Node, error: Tensor) -> dict[str, object]:
    mean = input_mean(model, user)
    if mean is None:
        return {}
    if mean.remark is not None:
        return {"remark": mean.remark}
    add_to_bias(model, user, mean_shift(user, error, mean.mean))
    return {"remark": "bias corrected"}


def convert_activation(module: Any, model: GraphModule, node: Node) -> None:
    """Replace an activation's observer or fake-quantizer by stock quantize and dequantize nodes.

    Kernels fuse the quantization of their output and then saturate at the limits of int8, not at
    those of a narrower grid. So below 8 bits the values are clamped before they are quantized.

    Args:
        module: The observer or fake-quantizer.
        model: The prepared model, which the host is converting.
        node: The node that calls the module.
    """
    scale, zero_point = (x.item() for x in module.calculate_qparams())
    low, high = int(module.quant_min), int(module.quant_max)
    signed = module.dtype in (torch.qint8, torch.int8)
    grid = (scale, int(zero_point), low, high, torch.int8 if signed else torch.uint8)
    graph, x = model.graph, node.args[0]
    with graph.inserting_before(node):
        if high - low < 255:
            limits = ((low - int(zero_point)) * scale, (high - int(zero_point)) * scale)
            x = graph.call_function(torch.ops.aten.clamp.default, (x, *limits))
        codes = graph.call_function(_ops.quantize_per_tensor.default, (x, *grid))
        values = graph.call_function(_ops.dequantize_per_tensor.default, (codes, *grid))
    if "val" in node.meta:
        values.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(values)
    graph.erase_node(node)


def _register() -> None:
    """Make our classes observers and fake-quantizers in torchao's eyes, with its convert hook."""
    for observer in _OBSERVERS:
        ObserverBase.register(observer)
    for quantizer in _FAKE_QUANTIZERS:
        FakeQuantizeBase.register(quantizer)
    # The host asks every observer for a method of this name.
    for weight in (PWLQPerChannelObserver, PWLQPerChannelFakeQuantize):
        setattr(weight, "convert", convert_weight)  # noqa: B010
    for activation in _ACTIVATIONS:
        setattr(activation, "convert", convert_activation)  # noqa: B010


_register()
