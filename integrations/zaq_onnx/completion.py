"""Ranges for tensors that a model leaves in float between integer layers.

Hosts quantize the inputs of layers. Runtimes have integer kernels only for layers whose *output* is
quantized, too: a convolution in front of a float addition or of SiLU would run in float.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from zaq_onnx.graph import Array, Graph, make
from zaq_onnx.runtimes import feeds_of, ort_session

INTEGER = (
    "Conv",
    "Gemm",
    "Add",
    "Mul",
    "Sigmoid",
    "LeakyRelu",
    "GlobalAveragePool",
    "AveragePool",
    "Concat",
)
"""Operators for which ONNX Runtime has integer kernels, if all that they touch is quantized."""

KEEPS = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Transpose")
"""Operators whose output lies on their input's grid."""

LIMITS = ("Relu", "Clip")

NORM = "BatchNormalization"
"""No runtime has an integer kernel for it."""


class UnfoldedNorm(UserWarning):
    """Layers of a file multiply in float, because a BatchNorm behind them was not folded."""


def complete(graph: Graph, batches: Iterable[Any]) -> list[str]:
    """Quantize what lies between integer layers to 8 bits, by the range seen on some batches.

    Args:
        graph: Changed in place.
        batches: Tensors, tuples of the model's inputs, or inputs by name.

    Returns:
        Names of the tensors that were given a grid.

    Raises:
        ValueError: there is no batch.

    Warns:
        UnfoldedNorm: Layers stay in float for the BatchNorm behind them. Its input is what it
            makes small or large, channel by channel: one grid for all would cost accuracy.
    """
    once = _round_once(graph)
    outputs = _wanted(graph)
    ranges = _ranges(graph, outputs, batches)
    kinds = {name: node.op_type for name, node in graph.producers().items()}
    for name in outputs:
        low, high = (0.0, 1.0) if kinds[name] == "Sigmoid" else ranges[name]
        _insert(graph, name, low, high)
    _warn_of_norms(graph)
    graph.completed = len(once + outputs)
    return once + outputs


def _warn_of_norms(graph: Graph) -> None:
    consumers = graph.consumers()
    layers = [n for n in graph.of_type("Conv", "Gemm", "MatMul") if _normed(graph, consumers, n)]
    if layers:
        warnings.warn(
            f"{len(layers)} layers multiply in float (the first makes {layers[0].output[0]!r}): a "
            "BatchNorm behind them is not folded, for which runtimes have no integer kernel. "
            "Quantize zaq_plugin.fold_batch_norm(model, example_inputs) in place of the model.",
            UnfoldedNorm,
            stacklevel=6,
        )


def _normed(graph: Graph, consumers: Mapping[str, list[NodeProto]], node: NodeProto) -> bool:
    """Whether a layer is read by a BatchNorm alone."""
    readers = consumers.get(node.output[0], ())
    return bool(readers) and all(reader.op_type == NORM for reader in readers)


def _round_once(graph: Graph) -> list[str]:
    """``x -> Q -> DQ -> Q'`` becomes ``x -> Q'``: one rounding in place of two, and no floats.

    torch.ao does so behind pooling, whose output has its input's grid.
    """
    done = []
    for second in graph.of_type("QuantizeLinear"):
        producers, consumers = graph.producers(), graph.consumers()
        values = producers.get(second.input[0])
        if values is None or values.op_type != "DequantizeLinear":
            continue
        chain = [values]
        while chain[-1].op_type in (values.op_type, *KEEPS[1:]):
            source = producers.get(chain[-1].input[0])
            if source is None:
                break
            chain.append(source)
        *moves, first = chain[1:] or [values]
        alone = all(len(consumers[node.output[0]]) == 1 for node in chain)
        if first.op_type != "QuantizeLinear" or not alone or first.input[0] in graph.inputs:
            continue
        if moves:  # reshapes of integers become reshapes of floats, in front of the one rounding
            moves[-1].input[0] = first.input[0]
            second.input[0] = moves[0].output[0]
        else:
            second.input[0] = first.input[0]
        done.append(second.output[0])
    return done


def _wanted(graph: Graph) -> list[str]:
    """Outputs of integer operators that should be quantized and are not, in order."""
    consumers = graph.consumers()
    on_grid: set[str] = {n.output[0] for n in graph.nodes if n.op_type == "DequantizeLinear"}
    outputs: list[str] = []
    for node in graph.nodes:
        output = node.output[0]
        inputs = [name for name in node.input if name and name not in graph.constants]
        if not inputs or not all(name in on_grid for name in inputs):
            continue
        if node.op_type in KEEPS:
            on_grid.add(output)
            continue
        if node.op_type not in (*INTEGER, *LIMITS) or output in graph.outputs:
            continue
        if node.op_type in ("Add", "Mul", "Concat") and len(inputs) < len(node.input):
            continue  # a float constant takes part
        readers = consumers[output]
        if all(r.op_type == "QuantizeLinear" for r in readers):
            continue
        if node.op_type in ("Conv", "Gemm") and _normed(graph, consumers, node):
            continue  # a grid for all channels would not fit before they are scaled
        if len(readers) == 1 and readers[0].op_type in LIMITS:
            on_grid.add(output)  # rounded behind the limit
            continue
        on_grid.add(output)
        outputs.append(output)
    return outputs


def _ranges(
    graph: Graph, names: list[str], batches: Iterable[Any]
) -> dict[str, tuple[float, float]]:
    model = graph.to_model()
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in present
    )
    session = ort_session(model, optimize=False)
    ranges = dict.fromkeys(names, (0.0, 0.0))
    count = 0
    for batch in batches:
        count += 1
        inputs = batch if isinstance(batch, tuple | list | Mapping) else (batch,)
        values: list[Array] = session.run(names, feeds_of(session, inputs)) if names else []
        for name, value in zip(names, values, strict=True):
            low, high = ranges[name]
            ranges[name] = min(low, float(value.min())), max(high, float(value.max()))
    if not count:
        raise ValueError("calibration holds no batch; pass a list of image batches.")
    return ranges


def _insert(graph: Graph, name: str, low: float, high: float) -> None:
    """Quantize and dequantize a tensor for all who read it in float."""
    values = _known(graph, name)
    if values is not None:
        _read(graph, name, values)
        return
    grid = _behind(graph, name)
    if grid is None:
        scale, zero = grid_of(low, high)
        grid = [
            graph.add_constant(f"{name}.step", np.array(scale, np.float32)),
            graph.add_constant(f"{name}.zero", np.array(zero, np.uint8)),
        ]
    codes, values = graph.free(f"{name}.codes"), graph.free(f"{name}.values")
    _read(graph, name, values)
    graph.nodes += [
        make("QuantizeLinear", [name, *grid], codes),
        make("DequantizeLinear", [codes, *grid], values),
    ]
    graph.sort()


def grid_of(low: float, high: float) -> tuple[float, int]:
    """Step and zero point of 8 bits that hold a range around zero; the zero point is even.

    Where a sum of integers becomes one of another grid whose step is twice or four times as large,
    many lie in the middle of two. Runtimes round these to the even one, some before the zero point
    is added and some behind it: an odd one would make them differ.
    """
    zero = 2 * round(-low * 255 / max(high - low, 1e-8) / 2)
    zero = min(max(zero, 2 if low < 0 else 0), 254)
    ends = (-low / zero if zero else 0.0), high / (255 - zero)
    return max(*ends, 1e-8), zero


def _behind(graph: Graph, name: str) -> list[str] | None:
    """The one grid on which a tensor lies behind pooling and reshaping, whatever reads it.

    Rounding is monotone, so it may change places with a maximum: on that grid the tensor may lie
    before it, too. Who reads the pooled tensor in float (the first sum of a residual network) reads
    it on that grid then, so that one rounding serves all.
    """
    consumers = graph.consumers()
    waiting, grids = [name], set()
    floats: list[tuple[str, str]] = []
    while waiting:
        current = waiting.pop()
        if current in graph.outputs or not consumers[current]:
            return None
        for node in consumers[current]:
            if node.op_type in KEEPS and node.input[0] == current and len(node.output) == 1:
                waiting.append(node.output[0])
            elif node.op_type == "QuantizeLinear" and len(node.input) > 2:
                grids.add(tuple(node.input[1:3]))
            else:
                values = None if current == name else _whole(graph, current)
                if values is None:
                    return None
                floats.append((current, values))
    if len({tuple(_bytes(graph, n) for n in grid) for grid in grids}) != 1:
        return None
    scale, zero = min(grids)
    step = graph.array(scale)
    if step is None or step.size != 1:
        return None
    for current, values in floats:
        _read(graph, current, values)
    return [scale, zero]


def _bytes(graph: Graph, name: str) -> tuple[str, bytes] | str:
    value = graph.array(name)
    return name if value is None else (value.dtype.name, value.tobytes())


def _read(graph: Graph, name: str, values: str) -> None:
    """Let all who read a tensor in float read its values on the grid."""
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear":
            for i, read in enumerate(node.input):
                if read == name:
                    node.input[i] = values


def _whole(graph: Graph, name: str) -> str | None:
    """As `_known`, of a grid that is nowhere limited to fewer integers."""
    consumers = graph.consumers()
    grids = [n for n in consumers[name] if n.op_type == "QuantizeLinear"]
    readers = [reader for grid in grids for reader in consumers[grid.output[0]]]
    whole = readers and all(reader.op_type == "DequantizeLinear" for reader in readers)
    return _known(graph, name) if whole else None


def _known(graph: Graph, name: str) -> str | None:
    """What a tensor is dequantized to, if it is quantized to 8 whole bits for somebody already."""
    consumers = graph.consumers()
    for quantize in consumers[name]:
        if quantize.op_type == "QuantizeLinear":
            for reader in consumers[quantize.output[0]]:
                if reader.op_type == "DequantizeLinear":
                    return str(reader.output[0])
    return None
