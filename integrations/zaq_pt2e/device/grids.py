"""Grids in an int8 graph: what moves values on one, how one is put, changed or completed."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from zaq_plugin.fake_quantize import ActivationFakeQuantize
from zaq_plugin.observers import TopKMedianObserver
from zaq_plugin.student.batches import as_calls
from zaq_pt2e.device.signed import DEQUANTIZE, QUANTIZE, int8_layers
from zaq_pt2e.graph import argument, constant_value, set_argument
from zaq_pt2e.outputs import last_of

_aten = torch.ops.aten
MOVES = {
    operator.getitem,
    _aten.alias.default,
    _aten.chunk.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.dropout.default,
    _aten.expand.default,
    _aten.flatten.using_ints,
    _aten.permute.default,
    _aten.reshape.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.squeeze.dim,
    _aten.transpose.int,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
    _aten.view.default,
}
"""What reads a value, and what gives the same values in another order or shape, or some of them."""

FINEST = 256
"""A layer's output has a step of at least this part of the step of its sums, or XNNPACK does not
load it."""
_LOW, _HIGH = -128, 127


def round_behind(node: Node, grid: tuple[object, ...]) -> Node:
    """The node's values on a grid, quantized and dequantized; nobody reads them yet.

    Args:
        node: Of an activation.
        grid: Arguments of quantize_per_tensor behind the first.
    """
    graph = node.graph
    with graph.inserting_after(node):
        codes = graph.call_function(QUANTIZE[0], (node, *grid))  # type: ignore[arg-type]
    with graph.inserting_after(codes):
        values = graph.call_function(DEQUANTIZE[0], (codes, *grid))  # type: ignore[arg-type]
    values.meta["val"] = node.meta.get("val")
    return values


def put_on(codes: Node, scale: float, zero: int) -> None:
    """Give a quantize node, and all that dequantize it, another step and zero point."""
    for node in (codes, *[user for user in codes.users if user.target in DEQUANTIZE]):
        set_argument(node, 1, scale)
        set_argument(node, 2, zero)


# ---- Outputs without a grid ----------------------------------------------------------------------


def without_grid(converted: GraphModule) -> dict[Node, str]:
    """Where int8 layers (with their fused activations) end and somebody reads floats; by name."""
    ends = {last_of(layer.node): layer.name for layer in int8_layers(converted)}
    for node in converted.graph.nodes:  # sums of integers
        inputs = node.all_input_nodes
        if node.target is torch.ops.aten.add.Tensor and len(inputs) == 2:
            ends.update({last_of(node): node.name} if _on_grids(inputs) else {})
    return {e: n for e, n in ends.items() if any(u.target not in QUANTIZE for u in e.users)}


def _on_grids(nodes: list[Node]) -> bool:
    return all(node.target in DEQUANTIZE for node in nodes)


@torch.no_grad()
def complete(converted: GraphModule, batches: Iterable[Any] | None, who: str) -> int:
    """Give these ends 8-bit grids by the ranges that batches have there, in place.

    Args:
        converted: Not moved to int8 yet, or moved: the grids become as those that are there.
        batches: Calibration batches.
        who: The tool that asks, for errors.

    Returns:
        How many there were.

    Raises:
        ValueError: there are some, and no batches.
    """
    ends = {end: name for end, name in without_grid(converted).items() if not _shared(end)}
    if not ends:
        converted.recompile()
        return 0
    if batches is None:
        raise ValueError(
            f"{who}: the output of {_named(list(ends.values()))} has no grid, without which its "
            "kernels do not take a layer. Pass calibration=batches, which gives ranges, or "
            "quantize with PWLQQuantizer(..., outputs=True)."
        )
    observers = {end: _observer() for end in ends}
    inputs = sum(node.op == "placeholder" for node in converted.graph.nodes)
    for args, kwargs in as_calls(batches, f"{who}: calibration", inputs):
        _Watch(converted, observers).run(*args, *kwargs.values())
    for end, observer in observers.items():
        scale, zero = (x.item() for x in observer.calculate_qparams())
        grid = (scale, int(zero), 0, 255, torch.uint8)
        values = round_behind(end, grid)
        _read(end, values)
    converted.recompile()
    return len(ends)


def _named(names: list[str]) -> str:
    return names[0] + (f" and of {len(names) - 1} more" if len(names) > 1 else "")


def _shared(end: Node) -> bool:
    """Let those who read floats read the grid that others have put the node on, if any have."""
    for user in end.users:
        if user.target in QUANTIZE and user.users:
            values = next(iter(user.users))
            ordered = list(end.graph.nodes)
            last = max(map(ordered.index, (user, values)))
            if all(ordered.index(u) > last for u in end.users if u.target not in QUANTIZE):
                _read(end, values)
                return True
    return False


def _read(end: Node, values: Node) -> None:
    for user in list(end.users):
        if user.target not in QUANTIZE:
            user.replace_input_with(end, values)


def _observer() -> Any:
    factory: Any = ActivationFakeQuantize.with_args(observer=TopKMedianObserver, fake_quant=False)
    return factory(dtype=torch.quint8, quant_min=0, quant_max=255)


class _Watch(Interpreter):
    """Runs the graph, and shows some nodes' values to observers."""

    def __init__(self, model: GraphModule, observers: dict[Node, nn.Module]) -> None:
        super().__init__(model)
        self.observers = observers

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.observers and isinstance(value, Tensor):
            self.observers[n](value)
        return value


def output_step(converted: GraphModule) -> float:
    """The largest step of the grids that the model's outputs are on; 0 if they are on none."""
    outputs = next(n for n in converted.graph.nodes if n.op == "output")
    return max((_step_of(node) for node in outputs.all_input_nodes), default=0.0)


def _step_of(node: Node) -> float:
    while node.target not in DEQUANTIZE:
        inputs = node.all_input_nodes
        if len(inputs) != 1 or isinstance(argument(node, 0), list | tuple):
            return 0.0
        node = inputs[0]
    return float(node.args[1])  # type: ignore[arg-type]


def raise_steps(model: GraphModule) -> None:
    """Raise, in place, steps of layers' outputs that are far below the step of their sums.

    Such is an output without a range, as that of weights of zero. What lies between sums never
    occurs, so nothing is lost.
    """
    for layer in list(int8_layers(model)):
        x, weight = argument(layer.node, 0), argument(layer.node, 1)
        scales = weight.args[1]
        if isinstance(scales, Node):
            value = constant_value(model, scales)
            assert value is not None
            scales = float(value.max())
        least = float(argument(x, 1)) * float(scales) / FINEST * (1 + 1e-6)
        for codes in _grids_of(last_of(layer.node)):
            if float(argument(codes, 1)) >= least:
                continue
            bottom = (_LOW - int(argument(codes, 2))) * float(argument(codes, 1))
            zero = min(max(round(_LOW - bottom / least), _LOW), _HIGH)
            put_on(codes, least, zero)


def _grids_of(node: Node) -> list[Node]:
    return [user for user in node.users if user.target in QUANTIZE]
