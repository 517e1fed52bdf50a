"""Integer-only inference, for reference: int32 accumulators and fixed-point multipliers in numpy.

Scales of neighbouring layers are multiplied into one number, ``M = s_x s_w / s_y``, which becomes
an integer multiplier and a shift (requantisation). Between the first quantize and the last
dequantize no float is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto
from requantization import Codes, Sum, Value, requantize

from zaq_onnx.files import Path_, read
from zaq_onnx.graph import Array, Graph, attribute
from zaq_onnx.parameters import quantize_linear
from zaq_onnx.runtimes import as_array


class IntegerModel:
    """Runs a file from `export` in integers.

    Args:
        path: The file.

    Raises:
        ValueError: it is damaged, or needs floats: a layer whose input or output is not
            quantized, or an operator that integers alone cannot do.
    """

    def __init__(self, path: Path_) -> None:
        self.graph = Graph(read(path).plain)
        self.codes: dict[str, Array] = {}

    def run(
        self, inputs: Sequence[Any], integers: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The model's outputs.

        Args:
            inputs: Floats; the first thing that happens to them is to be quantized.
            integers: Of some tensors, by name, that replace the computed ones behind them
                (to compare a runtime layer by layer). All computed ones are left in ``codes``.

        Raises:
            ValueError: see the class.
        """
        values: dict[str, Value] = {}
        floats = {n: as_array(x) for n, x in zip(self.graph.inputs, inputs, strict=True)}
        self.codes = {}
        for node in self.graph.nodes:
            output = node.output[0]
            if node.op_type == "QuantizeLinear":
                codes = self._quantize(node, values, floats)
                self.codes[output] = codes.values
                if integers is not None and output in integers:
                    codes = Codes(integers[output], codes.scale, codes.zero)
                values[output] = codes
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node, values)
            elif node.op_type in _OPERATORS:
                operands = [values.get(name) for name in node.input]
                values[output] = _OPERATORS[node.op_type](self.graph, node, operands)
            else:
                raise ValueError(
                    f"{node.op_type} {output!r} cannot be computed in integers alone; integer-only "
                    "inference is for plain convolutional networks."
                )
        return [_floats(values[name]) for name in self.graph.outputs]

    def _quantize(
        self, node: NodeProto, values: dict[str, Value], floats: dict[str, Array]
    ) -> Codes:
        scale, zero = self.graph.array(node.input[1]), self.graph.array(node.input[2])
        if scale is None or zero is None or scale.size != 1:
            raise ValueError(f"{node.output[0]!r}: activations need one constant grid each.")
        step, origin = float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
        name = node.input[0]
        if name in floats:
            return Codes(quantize_linear(self.graph, node, floats[name]), scale, origin)
        value = values[name]
        total = value if isinstance(value, Sum) else Sum(((value.centered(), value.scale),))
        return Codes(requantize(total, step, origin, zero.dtype), scale, origin)

    def _dequantize(self, node: NodeProto, values: dict[str, Value]) -> None:
        name, output = node.input[0], node.output[0]
        scale = self.graph.array(node.input[1])
        assert scale is not None
        constant = self.graph.array(name)
        if constant is not None:
            axis = int(attribute(node, "axis", 1)) if scale.ndim else 0
            values[output] = Codes(constant, scale, 0, axis)
        else:
            values[output] = values[name]


def _floats(value: Value) -> Array:
    """The last dequantize: the only place where scales and integers meet as floats."""
    if isinstance(value, Codes):
        return (value.centered() * value.scale).astype(np.float32)
    total: Any = 0.0
    for integers, scale in value.terms:
        shape = [1, -1, *([1] * (integers.ndim - 2))] if scale.size > 1 else []
        total = total + integers * scale.reshape(shape).astype(np.float64)
    return np.asarray(np.maximum(total, 0) if value.floor else total, np.float32)


def _require(node: NodeProto, value: Value | None) -> Codes:
    if isinstance(value, Codes):
        return value
    raise ValueError(
        f"{node.op_type} {node.output[0]!r} reads a tensor that is not quantized. Export with "
        "calibration=batches, which gives every tensor between layers a range."
    )


def _bias(
    graph: Graph, node: NodeProto, operands: list[Value | None], scale: Array
) -> Array | None:
    if len(node.input) < 3 or not node.input[2]:
        return None
    if isinstance(operands[2], Codes):
        return operands[2].values.astype(np.int32)
    bias = graph.array(node.input[2])
    if bias is None:
        raise ValueError(f"{node.output[0]!r}: its bias is no constant.")
    return np.rint(bias.astype(np.float64) / scale.astype(np.float64)).astype(np.int32)


def _conv(graph: Graph, node: NodeProto, operands: list[Value | None]) -> Value:
    x, w = _require(node, operands[0]), _require(node, operands[1])
    weight = w.values.astype(np.int32)
    spatial = weight.ndim - 2
    strides = attribute(node, "strides", [1] * spatial)
    dilations = attribute(node, "dilations", [1] * spatial)
    pads = attribute(node, "pads", [0] * 2 * spatial)
    groups = int(attribute(node, "group", 1))
    edges = [(0, 0), (0, 0), *((pads[i], pads[i + spatial]) for i in range(spatial))]
    data = np.pad(x.centered(), edges)  # zero is 0 once the zero point is taken off
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(data, reach, tuple(range(2, 2 + spatial)))
    steps = [slice(None, None, s) for s in strides]
    holes = [slice(None, None, d) for d in dilations]
    windows = windows[(slice(None), slice(None), *steps, *holes)]
    scale = np.broadcast_to(x.scale * w.scale.reshape(-1), weight.shape[:1])
    parts = []
    per = weight.shape[0] // groups
    for group in range(groups):
        channels = slice(group * weight.shape[1], (group + 1) * weight.shape[1])
        part = windows[:, channels]
        # (n, c, *out, *kernel) with (o, c, *kernel) to (n, *out, o)
        axes = [1, *range(2 + spatial, 2 + 2 * spatial)]
        kernel = weight[group * per : (group + 1) * per]
        parts.append(np.tensordot(part, kernel, (axes, list(range(1, 2 + spatial)))))
    total = np.moveaxis(np.concatenate(parts, -1), -1, 1).astype(np.int32)
    bias = _bias(graph, node, operands, scale)
    if bias is not None:
        total = total + bias.reshape([1, -1, *([1] * spatial)])
    return Sum(((total, scale),))


def _gemm(graph: Graph, node: NodeProto, operands: list[Value | None]) -> Value:
    x, w = _require(node, operands[0]), _require(node, operands[1])
    weight = w.values.astype(np.int32)
    turned = weight.T if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight
    total = (x.centered() @ turned).astype(np.int32)
    scale = np.broadcast_to(x.scale * w.scale.reshape(-1), turned.shape[-1:])
    bias = _bias(graph, node, operands, scale)
    return Sum(((total if bias is None else total + bias, scale),))


def _add(_: Graph, node: NodeProto, operands: list[Value | None]) -> Value:
    both = [_require(node, value) for value in operands]
    return Sum(tuple((value.centered(), value.scale) for value in both))


def _relu(_: Graph, __: NodeProto, operands: list[Value | None]) -> Value:
    value = operands[0]
    assert value is not None
    if isinstance(value, Sum):
        return Sum(value.terms, floor=True)
    return Codes(np.maximum(value.values, value.zero), value.scale, value.zero)


def _clip(graph: Graph, node: NodeProto, operands: list[Value | None]) -> Value:
    value = _require(node, operands[0])
    low, high = (graph.array(name) for name in node.input[1:])
    return Codes(np.clip(value.values, low, high), value.scale, value.zero)


def _mean(_: Graph, node: NodeProto, operands: list[Value | None]) -> Value:
    value = _require(node, operands[0])
    total = value.centered().sum((2, 3), keepdims=True, dtype=np.int32)
    count = value.values.shape[2] * value.values.shape[3]
    return Sum(((total, value.scale / np.float64(count)),))


def _maximum(_: Graph, node: NodeProto, operands: list[Value | None]) -> Value:
    value = _require(node, operands[0])
    kernel = attribute(node, "kernel_shape")
    strides, pads = attribute(node, "strides", [1, 1]), attribute(node, "pads", [0, 0, 0, 0])
    edges = [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])]
    lowest = np.iinfo(value.values.dtype).min
    data = np.pad(value.values, edges, constant_values=lowest)
    windows = np.lib.stride_tricks.sliding_window_view(data, kernel, (2, 3))
    return Codes(windows[:, :, :: strides[0], :: strides[1]].max((-2, -1)), value.scale, value.zero)


def _reshape(graph: Graph, node: NodeProto, operands: list[Value | None]) -> Value:
    value = _require(node, operands[0])
    shape = graph.array(node.input[1])
    if shape is None:
        raise ValueError(f"{node.output[0]!r}: its shape is no constant.")
    sizes = [value.values.shape[i] if d == 0 else int(d) for i, d in enumerate(shape)]
    return Codes(value.values.reshape(sizes), value.scale, value.zero)


_OPERATORS: dict[str, Callable[[Graph, NodeProto, list[Value | None]], Value]] = {
    "Add": _add,
    "Clip": _clip,
    "Conv": _conv,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "MatMul": _gemm,
    "MaxPool": _maximum,
    "Relu": _relu,
    "Reshape": _reshape,
}
