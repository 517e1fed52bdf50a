"""Casts that change nothing: to the type and device that a tensor has.

Models write them for half precision, around rotary embeddings and norms in float32. The values on
both sides are the same, but a tool would give each side a grid of its own, and round from one to
the other between them; LiteRT's converter takes that rounding out, and refuses its own result.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
_CASTS = (
    _aten.to.dtype,
    _aten.to.device,
    _aten.to.dtype_layout,
    _aten.to.other,
    _aten.type_as.default,
)
_CHECK = _aten._assert_tensor_metadata.default


def drop_casts(model: GraphModule) -> int:
    """Takes them out, in place, with the checks that torch.export puts in front of them.

    Returns:
        How many there were.
    """
    count = 0
    for node in list(model.graph.nodes):
        if not _changes_nothing(node):
            continue
        source = node.args[0]
        for user in list(source.users):
            if user.target is _CHECK:
                model.graph.erase_node(user)
        node.replace_all_uses_with(source)
        model.graph.erase_node(node)
        count += 1
    if count:
        model.recompile()
    return count


def _changes_nothing(node: Node) -> bool:
    """Whether torch gives its input itself."""
    if node.op != "call_function" or node.target not in _CASTS:
        return False
    source = node.args[0]
    if not isinstance(source, Node):
        return False
    before, behind = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(behind, Tensor):
        return False
    names = [argument.name for argument in node.target._schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    plain = not given.get("copy") and given.get("memory_format") in (None, torch.preserve_format)
    same = (before.dtype, before.device, before.layout)
    return plain and same == (behind.dtype, behind.device, behind.layout)
