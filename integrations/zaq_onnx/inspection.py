"""What ONNX Runtime made of a model: kernels, weights, and floats between integers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto

from zaq_onnx.graph import Array, Graph
from zaq_onnx.runtimes import HEAVY, is_integer
from zaq_onnx.weights import Weights, weights_of

_MOVES = (
    "Transpose",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "MaxPool",
    "NhwcMaxPool",
    "Concat",
    "Slice",
    "Split",
    "Clip",
    "Pad",
    "Identity",
    "Relu",
    "Gather",
)
"""Operators whose output has the type of their input."""

_WEIGHT = {"QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3, "MatMulIntegerToFloat": 1}
_WEIGHT |= {"MatMulInteger": 1, "ConvInteger": 1}
_FLOAT_RESULT = ("DequantizeLinear", "MatMulIntegerToFloat")
_QGEMM_SCALE = 7


def integer_layers(optimized: Graph) -> list[NodeProto]:
    """Nodes that multiply by an integer weight."""
    return [
        node
        for node in optimized.nodes
        if node.op_type in _WEIGHT
        and optimized.array(node.input[_WEIGHT[node.op_type]]) is not None
    ]


def float_layers(optimized: Graph) -> list[NodeProto]:
    """Convolutions and products with a constant weight that run in float."""
    producers = optimized.producers()
    nodes = []
    for node in optimized.of_type(*HEAVY):
        source = producers.get(node.input[1])
        dequantized = source is not None and source.op_type == "DequantizeLinear"
        if node.input[1] in optimized.constants or (
            dequantized and source is not None and source.input[0] in optimized.constants
        ):
            nodes.append(node)
    return nodes


def several_grids(plain: Graph) -> list[NodeProto]:
    """Layers whose output is put on more than one grid: integer kernels have one output.

    A layer of fewer than 8 bits and a sum, which has 8, read it so.

    Args:
        plain: A file's own graph, unpacked and not optimized.
    """
    consumers = plain.consumers()
    return [
        node
        for node in plain.of_type(*HEAVY)
        if sum(reader.op_type == "QuantizeLinear" for reader in consumers[node.output[0]]) > 1
    ]


def has_narrow_grids(plain: Graph) -> bool:
    """Whether activations have fewer than 8 bits: a Clip limits their integers."""
    producers = plain.producers()
    return any(
        node.input[0] in producers and producers[node.input[0]].op_type == "QuantizeLinear"
        for node in plain.of_type("Clip")
    )


def why_float(plain: Graph, count: int, completed: bool) -> str:
    """Why layers run in float, and what to do.

    Args:
        plain: A file's own graph, unpacked and not optimized.
        count: How many layers do.
        completed: Whether a calibration gave tensors a range when it was exported.
    """
    split = min(len(several_grids(plain)), count)
    parts = []
    if split:
        parts.append(
            f"{split} because their output is on two grids, one of fewer bits for a layer and one "
            "of 8 bits for a sum, and integer kernels have one output; with 8-bit activations the "
            "two are one"
        )
    if count > split and completed:
        parts.append(
            f"{count - split} because an operator without an integer kernel makes their input or "
            "reads their output"
        )
    elif count > split:
        parts.append(
            f"{count - split} because their input or output is not quantized; "
            "export(..., calibration=batches) gives it a range"
        )
        if has_narrow_grids(plain):
            parts[-1] += (
                ", which helps where no sum reads what a layer of fewer than 8 bits reads, too"
            )
    return "; ".join(parts)


def strangers(optimized: Graph, original: ModelProto) -> list[str]:
    """Integer kernels whose weight is none of the original's: requantized by the runtime.

    Layouts may differ, so a weight is known by its values in order of size.
    """
    fingerprints = {_fingerprint(weight.integers) for weight in weights_of(Graph(original))}
    names = []
    for node in integer_layers(optimized):
        value = optimized.array(node.input[_WEIGHT[node.op_type]])
        if value is not None and _fingerprint(value) not in fingerprints:
            names.append(f"{node.op_type} {node.name or node.output[0]}")
    return names


def _fingerprint(value: Array) -> bytes:
    signed = value.astype(np.int16)
    if value.dtype == np.uint8:  # some kernels want unsigned weights
        signed = signed - 128
    return bytes(np.sort(signed, axis=None).astype(np.int8).tobytes())


def float_operations(optimized: Graph) -> list[str]:
    """Operators that compute with floats between the first quantize and the last dequantize.

    Empty for integer-only inference: everything behind the first QuantizeLinear reads integers,
    and what gives floats is only followed by the model's outputs.
    """
    integers: set[str] = set()
    floats: set[str] = set(optimized.inputs)
    names = []
    for node in optimized.nodes:
        reads = [name for name in node.input if name in floats or name in integers]
        first = node.op_type == "QuantizeLinear" and reads[:1] and reads[0] in optimized.inputs
        if not first and any(name in floats for name in reads):
            names.append(f"{node.op_type} {node.name or node.output[0]}")
        makes_integers = _makes_integers(node, reads, integers)
        (integers if makes_integers else floats).update(node.output)
    return names


def _makes_integers(node: NodeProto, reads: list[str], integers: set[str]) -> bool:
    if node.op_type == "QGemm":
        return len(node.input) > _QGEMM_SCALE and bool(node.input[_QGEMM_SCALE])
    if node.op_type in _MOVES:
        return bool(reads) and all(name in integers for name in reads)
    if node.op_type in _FLOAT_RESULT:
        return False
    return node.op_type == "QuantizeLinear" or is_integer(node)


def output_steps(graph: Graph) -> Iterator[float]:
    """By how much each output moves when the last activations are off by one step, at random.

    For a layer: the step of its input times the length of its longest row of weights.
    """
    producers, weights = graph.producers(), weights_of(graph)
    for name in graph.outputs:
        yield _step_of(graph, producers, weights, name)


def _step_of(graph: Graph, producers: dict[str, NodeProto], weights: Weights, name: str) -> float:
    node = producers.get(name)
    while node is not None and node.op_type not in ("DequantizeLinear", "Conv", "Gemm", "MatMul"):
        inner = [n for n in node.input if n in producers]
        node = producers[inner[0]] if inner else None
    if node is None:
        return 0.0
    if node.op_type == "DequantizeLinear":
        scale = graph.array(node.input[1])
        return 0.0 if scale is None else float(scale.max())
    x, w = producers.get(node.input[0]), producers.get(node.input[1])
    if x is None or w is None or {x.op_type, w.op_type} != {"DequantizeLinear"}:
        return 0.0
    step, scale = graph.array(x.input[1]), graph.array(w.input[1])
    weight = weights.by_output.get(w.output[0])
    if step is None or scale is None or weight is None:
        return 0.0
    lengths = np.linalg.norm(weight.rows.astype(np.float64), axis=1) * scale.reshape(-1)
    return float(step.max() * lengths.max())


def input_steps(graph: Graph) -> dict[str, float]:
    """The step of the grid that each of a model's inputs is first put on, where there is one."""
    steps: dict[str, float] = {}
    for node in graph.of_type("QuantizeLinear"):
        name, scale = node.input[0], graph.array(node.input[1])
        if name in graph.inputs and scale is not None:
            steps[name] = max(steps.get(name, 0.0), float(scale.max()))
    return steps
