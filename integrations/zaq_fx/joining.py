"""Concatenations in int8: one kernel that brings every input to the output's grid.

The host's own lowering concatenates the integers as they are and hopes for one grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from zaq_fx.kept import KeptCall


def lower_concatenations(converted: fx.GraphModule) -> int:
    """Turn dequantize, concatenation in float, quantize into ``quantized.cat``; in place.

    Args:
        converted: From convert_fx. Concatenations with a float input, or that nothing quantizes
            behind, stay as they are.

    Returns:
        How many were turned.
    """
    modules = dict(converted.named_modules(remove_duplicate=False))
    count = 0
    for node in list(converted.graph.nodes):
        if node.op != "call_function" or node.target is not torch.quantize_per_tensor:
            continue
        joined, scale, zero_point, dtype = node.args
        if dtype is not torch.quint8 or not isinstance(joined, fx.Node):
            continue
        parts = _concatenation(joined, modules)
        if parts is None:
            continue
        tensors, dim = parts
        if not all(_dequantized(t) for t in tensors):
            continue
        integers = [t.args[0] for t in tensors]
        with converted.graph.inserting_before(node):
            call = converted.graph.call_function(
                torch.ops.quantized.cat, (integers, dim, scale, zero_point)
            )
        node.replace_all_uses_with(call)
        converted.graph.erase_node(node)
        count += 1
    converted.graph.eliminate_dead_code()
    converted.recompile()
    return count


def _concatenation(node: fx.Node, modules: dict[str, Any]) -> tuple[list[fx.Node], int] | None:
    """Inputs and axis of a concatenation in float; None if the node is none."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(module, KeptCall) or module[0].function is not torch.cat:
        return None
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(tensors, tuple | list) or not isinstance(dim, int):
        return None
    return list(tensors), dim


def _dequantized(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_method" and node.target == "dequantize"
