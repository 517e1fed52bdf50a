"""FX-converted models: int8 modules become float operators between static grids.

A quantized tensor of torch.ao is represented by its values on the grid, in float. Whatever made
one is followed by that grid; operators that keep the grid of their input (maximum, reshaping) stay
as they are, and those that round to it (averages) are followed by it.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from zaq_onnx._compat import (
    ACTIVATIONS,
    ADDING,
    CONVOLUTIONS,
    FIXED_GRIDS,
    LINEAR,
    RELU,
)
from zaq_onnx.grids import (
    ActivationGrid,
    Applied,
    Grid,
    Weighted,
    arguments,
    product_grid,
    sum_grid,
    weighted,
)
from zaq_plugin.graph import attribute_at

_quantized = torch.ops.quantized
_BINARY: dict[Any, tuple[Callable[..., Any], bool]] = {
    _quantized.add: (operator.add, False),
    _quantized.add_relu: (operator.add, True),
    _quantized.mul: (operator.mul, False),
    _quantized.mul_relu: (operator.mul, True),
    _quantized.matmul: (torch.matmul, False),
    _quantized.cat: (torch.cat, False),
}
_UNARY: dict[Any, Callable[..., Any]] = {
    _quantized.hardswish: nn.functional.hardswish,
    _quantized.leaky_relu: nn.functional.leaky_relu,
    _quantized.elu: nn.functional.elu,
    _quantized.softmax: torch.softmax,
}
_AVERAGING = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.Upsample,
    nn.ReLU6,
    nn.Hardtanh,
)
_AVERAGING_CALLS = (
    nn.functional.adaptive_avg_pool1d,
    nn.functional.adaptive_avg_pool2d,
    nn.functional.adaptive_avg_pool3d,
    nn.functional.avg_pool1d,
    nn.functional.avg_pool2d,
    nn.functional.avg_pool3d,
    nn.functional.interpolate,
    nn.functional.relu6,
    nn.functional.hardtanh,
    torch.mean,
    torch.clamp,
    "mean",
    "clamp",
)


def is_converted_fx(model: nn.Module) -> bool:
    """Whether a model came from convert_fx or convert_to_reference_fx."""
    kinds = (*CONVOLUTIONS, *LINEAR)
    return isinstance(model, fx.GraphModule) and any(isinstance(m, kinds) for m in model.modules())


def from_fx(converted: fx.GraphModule) -> fx.GraphModule:
    """A copy of an FX-converted model in float arithmetic, every tensor on its grid.

    Raises:
        ValueError: an int8 operator of torch.ao that has no counterpart here.
    """
    return _Rewriter(copy.deepcopy(converted)).run()


class _Rewriter:
    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.grids: dict[fx.Node, Grid] = {}
        self.count = 0

    def run(self) -> fx.GraphModule:
        for node in list(self.model.graph.nodes):
            if node.op == "call_function":
                self._function(node)
            elif node.op == "call_module":
                self._module(node)
            elif node.op == "call_method":
                self._method(node)
        self.model.graph.eliminate_dead_code()
        self.model.graph.lint()
        module = fx.GraphModule(self.model, self.model.graph)
        module.eval()
        return module

    # ---- the three kinds of nodes ----------------------------------------------------------------

    def _function(self, node: fx.Node) -> None:
        target: Any = node.target
        if target is torch.quantize_per_tensor:
            grid = self._number(node.args[1]), int(self._number(node.args[2]))
            signed = node.args[3] is torch.qint8
            self._replace(node, node.args[0], grid, signed=signed)
        elif target is torch.dequantize:
            self._leave_grid(node)
        elif target is _quantized.clamp or (
            isinstance(target, OpOverload) and target.overloadpacket is _quantized.clamp
        ):
            self._clamp(node)
        elif target in _BINARY and len(node.args) == 2:
            self._scalar(node)
        elif target in _BINARY:
            function, relu = _BINARY[target]
            *operands, scale, zero_point = node.args
            with self.model.graph.inserting_before(node):
                call = self.model.graph.call_function(function, tuple(operands))
                if relu:
                    call = self.model.graph.call_function(torch.relu, (call,))
            self._replace(node, call, (self._number(scale), int(self._number(zero_point))))
        elif target in _UNARY:
            self._unary(node)
        elif target in FIXED_GRIDS:
            self._follow(node, FIXED_GRIDS[target])
        elif "quantized" in str(target):
            raise ValueError(
                f"{node.name}: torch.ao's operator {target} cannot be exported. Leave it out of "
                "the quantization (qconfig mapping), or quantize with zaq_pt2e."
            )
        elif target is not operator.getitem or self._grid_of(node) is not None:
            self._keep(node, target in _AVERAGING_CALLS)

    def _module(self, node: fx.Node) -> None:
        module = self.modules[str(node.target)]
        kind = type(module)
        if isinstance(module, (*CONVOLUTIONS, *LINEAR)):
            self._layer(node, module)
        elif isinstance(module, nn.Sequential) and isinstance(
            module[0], (*CONVOLUTIONS, *LINEAR, Weighted)
        ):
            # A fused reference layer: its parts are float modules but for the first, which is
            # replaced at the first of its calls.
            if not isinstance(module[0], Weighted):
                self.model.set_submodule(f"{node.target}.0", weighted(str(node.target), module[0]))
        elif kind in ACTIVATIONS:
            self._activation(node, module)
        elif kind in FIXED_GRIDS:
            self._follow(node, FIXED_GRIDS[kind])
        elif kind.__module__.startswith("torch.ao."):
            raise ValueError(
                f"{node.target}: torch.ao's module {kind.__name__} cannot be exported. Leave it "
                "out of the quantization (qconfig mapping), or quantize with zaq_pt2e."
            )
        else:
            self._keep(node, isinstance(module, _AVERAGING))

    def _method(self, node: fx.Node) -> None:
        if node.target == "dequantize":
            self._leave_grid(node)
        elif node.target in FIXED_GRIDS and self._grid_of(node) is not None:
            self._follow(node, FIXED_GRIDS[node.target])
        else:
            self._keep(node, node.target in _AVERAGING_CALLS)

    # ---- what becomes of a node ------------------------------------------------------------------

    def _layer(self, node: fx.Node, module: Any) -> None:
        layer = weighted(str(node.target), module)
        name = str(node.target)
        self.model.set_submodule(name, layer)
        with self.model.graph.inserting_before(node):
            value = self.model.graph.call_module(name, (node.args[0],))
            if isinstance(module, ADDING):
                value = self.model.graph.call_function(operator.add, (value, node.args[1]))
            if isinstance(module, RELU) or type(module).__name__ == "ConvAddReLU2d":
                value = self.model.graph.call_function(torch.relu, (value,))
        if not isinstance(getattr(module, "scale", None), float | Tensor):
            node.replace_all_uses_with(value)  # a reference layer: its grid is a node of its own
            self.model.graph.erase_node(node)
            return
        self._replace(node, value, (float(module.scale), int(module.zero_point)))

    def _activation(self, node: fx.Node, module: Any) -> None:
        kind = ACTIVATIONS[type(module)]
        name = str(node.target)
        self.model.set_submodule(name, Applied(kind, arguments(kind, module)))
        with self.model.graph.inserting_before(node):
            call = self.model.graph.call_module(name, (node.args[0],))
        self._replace(node, call, (float(module.scale), int(module.zero_point)))

    def _unary(self, node: fx.Node) -> None:
        target: Any = node.target
        names = ("scale", "output_scale"), ("zero_point", "output_zero_point")
        grid = [next((node.kwargs[n] for n in group if n in node.kwargs), None) for group in names]
        rest = list(node.args[1:])
        if None in grid:
            grid, rest = rest[-2:], rest[:-2]
        with self.model.graph.inserting_before(node):
            call = self.model.graph.call_function(_UNARY[target], (node.args[0], *rest))
        self._replace(node, call, (self._number(grid[0]), int(self._number(grid[1]))))

    def _scalar(self, node: fx.Node) -> None:
        """A sum or a product of a quantized tensor and a number, which has no grid of its own."""
        function, relu = _BINARY[node.target]
        tensor: Any = next(a for a in node.args if isinstance(a, fx.Node))
        number = next((a for a in node.args if isinstance(a, int | float)), None)
        grid = self._grid_of(node)
        if number is None or grid is None or function not in (operator.add, operator.mul):
            raise ValueError(
                f"{node.name}: torch.ao's operator {node.target} of {node.args} cannot be "
                "exported: expected a quantized tensor and a number. Leave it out of the "
                "quantization (qconfig mapping), or quantize with zaq_pt2e."
            )
        value = float(number)
        if function is operator.mul:
            grid = product_grid(grid, value)
        else:
            value, grid = sum_grid(grid, value)
        with self.model.graph.inserting_before(node):
            call = self.model.graph.call_function(function, (tensor, value))
            if relu:
                call = self.model.graph.call_function(torch.relu, (call,))
        self._replace(node, call, grid)

    def _keep(self, node: fx.Node, rounds: bool) -> None:
        """A node that stays; its output has its input's grid, if that is quantized."""
        grid = self._grid_of(node)
        if grid is None:
            return
        if rounds:
            self._follow(node, grid)
        else:
            self.grids[node] = grid

    def _follow(self, node: fx.Node, grid: Grid) -> None:
        if self._grid_of(node) is None:
            return
        name = self._added(ActivationGrid(*grid))
        with self.model.graph.inserting_after(node):
            call = self.model.graph.call_module(name, (node,))
        node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
        self.grids[call] = grid

    def _replace(self, node: fx.Node, value: Any, grid: Grid, signed: bool = False) -> None:
        low, high = (-128, 127) if signed else (0, 255)
        name = self._added(ActivationGrid(*grid, low, high))
        with self.model.graph.inserting_before(node):
            call = self.model.graph.call_module(name, (value,))
        node.replace_all_uses_with(call)
        self.model.graph.erase_node(node)
        self.grids[call] = grid

    def _bypass(self, node: fx.Node) -> None:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        self.model.graph.erase_node(node)

    def _leave_grid(self, node: fx.Node) -> None:
        """Past a dequantize node values are floats: nothing rounds to the grid any more."""
        name = self._added(nn.Identity())
        with self.model.graph.inserting_before(node):
            call = self.model.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(call)
        self.model.graph.erase_node(node)

    def _clamp(self, node: fx.Node) -> None:
        """A clamp of integers: the grid before it becomes that narrow, or a narrow one follows."""
        source: Any = node.args[0]
        scale, zero = self.grids[source]
        low, high = (round(float(v) / scale) + zero for v in node.args[1:3])  # type: ignore[arg-type]
        module = self.modules.get(str(source.target)) if source.op == "call_module" else None
        if isinstance(module, ActivationGrid) and len(source.users) == 1:
            module.low, module.high = max(module.low, low), min(module.high, high)
            self._bypass(node)
        else:
            name = self._added(ActivationGrid(scale, zero, max(low, 0), min(high, 255)))
            with self.model.graph.inserting_before(node):
                call = self.model.graph.call_module(name, (source,))
            node.replace_all_uses_with(call)
            self.model.graph.erase_node(node)
            self.grids[call] = (scale, zero)

    # ---- small things ----------------------------------------------------------------------------

    def _grid_of(self, node: fx.Node) -> Grid | None:
        return next((self.grids[n] for n in node.all_input_nodes if n in self.grids), None)

    def _added(self, module: nn.Module) -> str:
        self.count += 1
        name = f"zaq_grid_{self.count}"
        self.model.add_submodule(name, module)
        self.modules[name] = module
        return name

    def _number(self, value: Any) -> float:
        if isinstance(value, fx.Node):
            return float(attribute_at(self.model, str(value.target)))
        return float(value)
