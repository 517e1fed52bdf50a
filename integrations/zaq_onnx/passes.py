"""From what the exporter writes to a graph that runtimes run in integers: passes, one by one.

A pass is a function that changes a graph in place and keeps what it computes; a list of them is
run in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zaq_onnx.activations import (
    limits_behind_quantize,
    means_to_pools,
    reshapes_behind_quantize,
    share_quantizers,
)
from zaq_onnx.graph import Graph
from zaq_onnx.padding import pads_into_convolutions, pools_without_padding
from zaq_onnx.parameters import bias_of_outputs, drop_identities, fold_weights, room_for_biases

Pass = Callable[[Graph], object]

INTEGERS: tuple[Pass, ...] = (
    drop_identities,
    fold_weights,
    pads_into_convolutions,
    pools_without_padding,
    limits_behind_quantize,
    means_to_pools,
    reshapes_behind_quantize,
    share_quantizers,
    room_for_biases,
    bias_of_outputs,
    Graph.prune,
    Graph.sort,
)
"""Integers wherever the model has grids."""


def run(graph: Graph, passes: Sequence[Pass]) -> None:
    """Run passes in their order; the graph is changed in place."""
    for one in passes:
        one(graph)
