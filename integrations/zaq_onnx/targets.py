"""What a file is for, where that decides which layers are worth integers.

WebAssembly has no fast int8 depthwise convolution: onnxruntime-web takes 3 to 8 times as long as in
float, while dense ones are faster than float.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from zaq_onnx.graph import MOVES, Graph, attribute, make
from zaq_onnx.weights import weights_of

TARGETS = ("any", "wasm")
REASON = 'WebAssembly has no fast int8 depthwise convolution (target="wasm")'

_LIMITS = ("Relu", "Clip")
_LOWEST = "lowest.float32"


def check_target(target: object) -> None:
    """Refuse what is none of `TARGETS`.

    Raises:
        ValueError: it is none.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(map(repr, TARGETS))}; got {target!r}.")


def depthwise_to_float(graph: Graph) -> dict[str, str]:
    """Let depthwise convolutions multiply in float; the graph is changed in place.

    Their weights keep their levels, as float32. The layers around them stay in integers, so what a
    depthwise one reads and what is made of its output lie on the grids on which they lay. ONNX
    Runtime would round a float weight between two grids to 8 bits of its own; a Max with the lowest
    number, which changes nothing, keeps it from that.

    Returns:
        The reason, by name of the weight.
    """
    weights = weights_of(graph).by_output
    floats: dict[str, str] = {}
    for node in graph.of_type("Conv"):
        weight = weights.get(node.input[1])
        if weight is None or attribute(node, "group", 1) == 1 or weight.integers.shape[1] != 1:
            continue
        scale = graph.array(weight.node.input[1])
        if scale is None:
            continue
        if weight.name not in floats:
            value = weight.floats(scale)
            floats[weight.name] = graph.add_constant(f"{weight.name}.float", value)
        node.input[1] = floats[weight.name]
        if _leads_to_a_grid(graph, node.output[0]):
            keep_float(graph, node)
    graph.prune()
    for name, constant in floats.items():
        if name not in graph.constants:  # nobody else reads the integers
            graph.rename_constant(constant, name)
            floats[name] = name
    return dict.fromkeys(floats.values(), REASON)


def _leads_to_a_grid(graph: Graph, name: str) -> bool:
    """Whether a tensor is quantized, behind a limit or a change of its shape, too."""
    readers = graph.consumers()[name]
    return any(
        reader.op_type == "QuantizeLinear"
        or (reader.op_type in (*MOVES, *_LIMITS) and _leads_to_a_grid(graph, reader.output[0]))
        for reader in readers
    )


def keep_float(graph: Graph, node: NodeProto) -> None:
    """Put a Max behind a node that runtimes would round between two grids otherwise."""
    if _LOWEST not in graph.constants:
        graph.add_constant(_LOWEST, np.array(np.finfo(np.float32).min, np.float32))
    raw = graph.free(f"{node.output[0]}.raw")
    largest = make("Max", [raw, _LOWEST], node.output[0])
    node.output[0] = raw
    graph.insert_after(node, largest)
