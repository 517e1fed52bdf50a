"""Which axis of a tensor holds a layer's channels, and in which order, up to the next layer.

A convolution's channels are one axis, a linear layer's features the last one; flattening, views and
means move that axis, mix it with others, or take it away. Where a graph's shapes are known
(`layer_graph` was given example inputs) every reshape can be followed; where they are not, only
what is right for every shape is, models being taken to be called with batches.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from zaq_plugin.graph import name_of_target
from zaq_plugin.layers import in_features, out_features

UNKNOWN = "whose effect on the channels depends on shapes that are not known (give example_inputs)"


@dataclass(frozen=True)
class Axis:
    """Where a tensor's channels are.

    Attributes:
        channels: Their number.
        axis: Position of their axis, -1 if the rank is not known.
        rank: Number of dimensions, or None.
        order: What the axis holds: the channels (``plain``); each channel several times, one
            channel after the other (``major``); all channels, several times over (``minor``).
        index: The channel at each position of the axis, where shapes are known.
    """

    channels: int
    axis: int
    rank: int | None
    order: Literal["plain", "major", "minor"] = "plain"
    index: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the axis holds each channel once, in order."""
        if self.index is None:
            return self.order == "plain"
        return torch.equal(self.index, torch.arange(self.channels))


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a node's tensor, where it is known."""
    value = node.meta.get("tensor_meta", node.meta.get("val"))
    shape = getattr(value, "shape", None)
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(shape)


def behind_layer(layer: nn.Module, shape: tuple[int, ...] | None) -> Axis:
    """Where a layer's output has its channels.

    Args:
        layer: Linear or convolution.
        shape: Of the output; None if it is not known.
    """
    channels, positions = out_features(layer), _positions(layer)
    index = None if shape is None else torch.arange(channels)
    if shape is not None:
        return Axis(channels, len(shape) - 1 - positions, len(shape), index=index)
    if positions:
        return Axis(channels, 1, positions + 2)
    return Axis(channels, -1, None)


def features(where: Axis, layer: nn.Module) -> Tensor | str:
    """The channel that each input feature of a layer holds, (in features,), or why there is none.

    Args:
        where: The channels of the layer's input.
        layer: Linear or convolution.
    """
    positions = _positions(layer)
    width = in_features(layer)
    wrong = "its channels are not what the next layer sums over"
    last = where.axis == -1 if where.rank is None else where.axis == where.rank - 1 - positions
    if not last or (where.rank is None and positions):
        return wrong
    if where.index is not None:
        return where.index if len(where.index) == width else wrong
    times, rest = divmod(width, where.channels)
    if rest or (where.order == "plain" and times != 1):
        return wrong
    channels = torch.arange(where.channels)
    return channels.repeat_interleave(times) if where.order == "major" else channels.repeat(times)


def behind(node: fx.Node, kind: str, where: Axis) -> Axis | str:
    """Where the channels are after one operation, or why they are nowhere.

    Args:
        node: The operation; its first argument is the tensor.
        kind: Its word by `connections.kind_of`.
        where: The channels of that tensor.
    """
    if kind == "pool":
        if where.rank is None or where.axis >= where.rank - 2:
            return "a pooling over an axis that may be the channels' stands behind it"
        return where
    if kind == "mean":
        return _mean(node, where)
    if kind == "pad":
        return _pad(node, where)
    if kind == "flatten":
        return _reshaped(node, where)
    return where


def _positions(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return 0 if isinstance(layer, nn.Linear) else weight.dim() - 2


def _argument(node: fx.Node, position: int, *names: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[n] for n in names if n in node.kwargs), default)


def _mean(node: fx.Node, where: Axis) -> Axis | str:
    dims = _argument(node, 1, "dim", "axis")
    keeps = _argument(node, 2, "keepdim", default=False)
    listed = list(dims) if isinstance(dims, list | tuple) else [dims]
    reason = "a mean over other axes than positions stands behind it"
    if not listed or not all(isinstance(d, int) for d in listed):
        return reason
    if where.rank is None:
        return where if all(d < -1 for d in listed) else f"a mean stands behind it {UNKNOWN}"
    taken = {d % where.rank for d in listed}
    if where.axis in taken:
        return reason
    if keeps:
        return where
    before = sum(d < where.axis for d in taken)
    return replace(where, axis=where.axis - before, rank=where.rank - len(taken))


def zero_padding(node: fx.Node) -> tuple[int, ...] | None:
    """The widths of a padding with zeros, last axis first; None for any other padding."""
    args = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False))
    args.update(node.kwargs)
    mode, value = args.get("mode", "constant"), args.get("value", 0)
    if isinstance(mode, int | float):  # aten.constant_pad_nd(x, pad, value)
        mode, value = "constant", mode
    widths: Any = args.get("pad")
    if mode != "constant" or value not in (0, None) or not isinstance(widths, list | tuple):
        return None
    return tuple(int(w) for w in widths)


def _pad(node: fx.Node, where: Axis) -> Axis | str:
    widths = zero_padding(node)
    if widths is None:
        return "a padding that is not by zeros at the border stands behind it"
    from_end = 1 if where.rank is None else where.rank - where.axis
    if any(widths[2 * (from_end - 1) : 2 * from_end]):
        return "a padding of the channels' own axis stands behind it"
    return where


def _reshaped(node: fx.Node, where: Axis) -> Axis | str:
    source = node.args[0] if node.args else None
    before = shape_of(source) if isinstance(source, fx.Node) else None
    after = shape_of(node)
    if where.index is not None and before is not None and after is not None:
        return _by_shapes(before, after, where, where.index)
    if where.order != "plain":
        return f"a second reshape stands behind it {UNKNOWN}"
    start, end = _flattened(node)
    if start is None or end is None:
        return f"{_word(node)!r} stands behind it, {UNKNOWN}"
    if where.rank is None:  # whatever is flattened up to the last axis ends with the channels
        if end == -1:
            return replace(where, order="minor")
        return f"a flatten stands behind it, {UNKNOWN}"
    start, end = start % where.rank, end % where.rank
    rank = where.rank - max(0, end - start)
    if end < where.axis:
        return replace(where, axis=where.axis - (end - start), rank=rank)
    if start > where.axis or start == end:
        return replace(where, rank=rank)
    if start == where.axis:
        return replace(where, rank=rank, order="major")
    if end == where.axis:
        return replace(where, axis=start, rank=rank, order="minor")
    return "a flatten that puts the channels between other axes stands behind it"


def _word(node: fx.Node) -> str:
    return name_of_target(node.target)


def _flattened(node: fx.Node) -> tuple[int | None, int | None]:
    """The first and last axis that a flatten, or a view like ``x.view(x.size(0), -1)``, joins."""
    name = _word(node).split(".")[0]
    if node.op == "call_module":
        owner: Any = node.graph.owning_module
        module: Any = owner.get_submodule(str(node.target))
        return (module.start_dim, module.end_dim) if type(module) is nn.Flatten else (None, None)
    if name == "flatten":
        return _argument(node, 1, "start_dim", default=0), _argument(node, 2, "end_dim", default=-1)
    sizes: Sequence[Any] = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = sizes[0]
    if name in ("view", "reshape") and len(sizes) == 2 and sizes[1] == -1:
        return (1, -1) if _is_batch(sizes[0]) else (None, None)
    return None, None


def _is_batch(size: Any) -> bool:
    """Whether a number of the graph is some tensor's first size."""
    if not isinstance(size, fx.Node):
        return False
    if size.op == "call_method" and size.target == "size":
        return tuple(size.args[1:]) == (0,)
    if size.op == "call_function" and size.target is operator.getitem and size.args[1] == 0:
        whole: Any = size.args[0]
        if not isinstance(whole, fx.Node):
            return False
        if whole.op == "call_method":
            return whole.target == "size" and len(whole.args) == 1
        return whole.target is getattr and str(whole.args[1]) == "shape"
    return False


def _by_shapes(
    before: tuple[int, ...], after: tuple[int, ...], where: Axis, index: Tensor
) -> Axis | str:
    """Follow any reshape: elements keep their order, so an axis is a digit of their position."""
    size = before[where.axis]
    inner = math.prod(before[where.axis + 1 :])
    if size == 1:  # one channel: any axis of one position holds it, and no other
        return "a reshape of a single channel stands behind it"
    for axis in reversed(range(len(after))):
        below = math.prod(after[axis + 1 :])
        if inner % below == 0 and (below * after[axis]) % (inner * size) == 0:
            position = torch.arange(after[axis]) // (inner // below) % size
            return Axis(where.channels, axis, len(after), where.order, index[position])
    return "a reshape that splits or mixes its channels stands behind it"
