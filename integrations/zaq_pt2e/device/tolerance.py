"""How far a graph's outputs move when its values are off by about a step of their grids.

Kernels round at other places than torch does, by a unit in the last place: now and then a value
falls on the other side of a half, in whatever layer. A deep network makes more of it. So the inputs
are moved by one step, and then every value between layers by half a step, before it is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from zaq_pt2e.device.completing import output_step
from zaq_pt2e.device.signed import QUANTIZE

Run = Callable[[tuple[Tensor, ...]], list[Tensor]]
"""Runs a batch: all outputs."""
DRAWS = 2
"""How often the inputs are moved, in random directions."""


@torch.no_grad()
def run_graph(model: GraphModule, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """All tensors that a graph gives."""
    output: Any = model(*inputs)
    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]


def tolerance(model: GraphModule, inputs: tuple[Tensor, ...]) -> float:
    """The largest difference of an output that counts as equal."""
    expected = run_graph(model, inputs)
    places = [node for node in model.graph.nodes if node.op == "placeholder"]
    generator = torch.Generator().manual_seed(0)
    limit = output_step(model)
    for _ in range(DRAWS):
        moved = []
        for node, x in zip(places, inputs, strict=True):
            if x.is_floating_point():
                x = x + _step(node, x) * torch.randn(x.shape, generator=generator).sign()
            moved.append(x)
        limit = max(limit, largest(run_graph(model, tuple(moved)), expected))
        shaken: Any = _Shaken(model, generator).run(*inputs)
        leaves = [x for x in torch.utils._pytree.tree_leaves(shaken) if isinstance(x, Tensor)]
        limit = max(limit, largest(leaves, expected))
    return limit


class _Shaken(Interpreter):
    """Runs a graph whose values are half a step off, at random, before they are rounded."""

    def __init__(self, model: GraphModule, generator: torch.Generator) -> None:
        super().__init__(model)
        self.generator = generator

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `torch.fx.Interpreter`."""
        if target in QUANTIZE:
            x = args[0]
            noise = torch.randn(x.shape, generator=self.generator).sign()
            args = (x + 0.5 * args[1] * noise, *args[1:])
        return super().call_function(target, args, kwargs)


def _step(place: Node, value: Tensor) -> float:
    """The input's step, or a 255th of its range where it meets its grid behind other operators."""
    steps = [float(u.args[1]) for u in place.users if u.target in QUANTIZE]  # type: ignore[arg-type]
    if steps:
        return max(steps)
    span = float(value.max() - value.min()) if value.numel() else 0.0
    return span / 255 if math.isfinite(span) else 0.0


def largest(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest difference of two lists of outputs; infinite if one is not finite."""
    gap = 0.0
    for a, b in zip(first, second, strict=True):
        apart = (a.double() - b.double()).abs()
        if apart.numel():
            worst = float(apart.max())
            gap = max(gap, worst if math.isfinite(worst) else math.inf)
    return gap
