"""`verify` of a device's integration: how far outputs are apart, and may be; the verdict."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from zaq_pt2e.device.grids import output_step
from zaq_pt2e.device.making import sized
from zaq_pt2e.device.signed import QUANTIZE, to_int8
from zaq_pt2e.device.weights import DeviceFile, int8_weights, missing

# ---- How far outputs may be apart ----------------------------------------------------------------
#
# Kernels round at other places than torch does, by a unit in the last place: now and then a value
# falls on the other side of a half, in whatever layer. A deep network makes more of it. So the
# inputs are moved by one step, and then every value between layers by half a step, before it is
# rounded.

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


# ---- The verdict ---------------------------------------------------------------------------------


@dataclass
class DeviceVerification:
    """What was found in a file, and how it ran.

    Attributes:
        path: The file.
        runtime: Who ran it.
        integer_layers: Convolutions and linear layers with int8 weights on int8 kernels.
        float_layers: Those that run in float.
        operators: How many of each operator the delegate (or the interpreter) runs.
        outside: Operators outside the delegate.
        weights: How many of the model's int8 weights are in the file, bit for bit.
        batch: The largest batch that the file was run with; its bound, if it takes any size up to
            one.
        dynamic: Whether it takes smaller batches, too.
        tolerance: Largest difference of an output that counts as equal.
        error: Largest difference of an output that was seen.
        mean_error: Mean difference of the outputs.
        agreement: Share of samples with the same top class in the first output.
        problems: What is wrong; empty if all is well.
        remarks: What a user should know, though it is not wrong.
    """

    path: str
    runtime: str
    integer_layers: int = 0
    float_layers: int = 0
    operators: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    weights: int = 0
    batch: int = 1
    dynamic: bool = False
    tolerance: float = 0.0
    error: float = 0.0
    mean_error: float = 0.0
    agreement: float = 1.0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def require(self) -> DeviceVerification:
        """Itself, if all is well.

        Raises:
            ValueError: the problems.
        """
        if self.problems:
            raise ValueError(str(self))
        return self

    def compare(
        self,
        model: GraphModule,
        run: Run,
        inputs: tuple[Tensor, ...],
        size: int,
        how: str = "",
    ) -> None:
        """Run inputs in torch and in the file, so many samples at a time, and keep the worst."""
        count = len(inputs[0])
        starts = [min(start, count - size) for start in range(0, count, size)]
        parts = [tuple(x[start : start + size] for x in inputs) for start in starts]
        expected = _joined([run_graph(model, part) for part in parts])
        outputs = _joined([run(part) for part in parts])
        shapes = [tuple(x.shape) for x in outputs], [tuple(x.shape) for x in expected]
        if shapes[0] != shapes[1]:
            self.problems.append(f"outputs of shapes {shapes[0]}; expected {shapes[1]}.")
            return
        self.tolerance = max([self.tolerance, *(tolerance(model, part) for part in parts)])
        error = largest(outputs, expected)
        self.error = max(self.error, error)
        apart = [
            float((a.double() - b.double()).abs().mean())
            for a, b in zip(outputs, expected, strict=True)
        ]
        self.mean_error = max([self.mean_error, *apart])
        first, right = outputs[0], expected[0]
        if right.dim() >= 2 and right.shape[1] > 1:
            same = float((first.argmax(1) == right.argmax(1)).float().mean())
            self.agreement = min(self.agreement, same)
        if not error <= self.tolerance * (1 + 1e-6) + 1e-6:
            self.problems.append(
                f"{how or f'with batches of {size}'} an output differs by {error:.3g} from the "
                f"model's, more than {self.tolerance:.3g}."
            )

    def __str__(self) -> str:
        sizes = f"up to {self.batch}" if self.dynamic else f"of {self.batch}"
        lines = [
            f"{self.path}: {'OK' if self.ok else 'NOT OK'} under {self.runtime}, batches {sizes}.",
            f"  {self.integer_layers} layers in integers, {self.float_layers} in float; "
            f"{self.weights} weights bit for bit",
            f"  largest difference {self.error:.3g} (allowed {self.tolerance:.3g}), mean "
            f"{self.mean_error:.2g}; top class equal in {100 * self.agreement:.1f} %",
            "  operators: " + _counted(self.operators),
            "  outside the delegate: " + (_counted(self.outside) or "none"),
        ]
        lines += [f"  problem: {text}" for text in self.problems]
        lines += [f"  remark: {text}" for text in self.remarks]
        return "\n".join(lines)


def _joined(runs: list[list[Tensor]]) -> list[Tensor]:
    return [
        torch.cat(outputs) if outputs[0].dim() else outputs[0]
        for outputs in zip(*runs, strict=True)
    ]


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(names.items()))


class Way(NamedTuple):
    """A way to run a file: with so many samples, in words, and what makes a runner of it."""

    size: int
    how: str
    load: Callable[[], Run]


File = TypeVar("File", bound=DeviceFile)
Orders = dict[int, list[tuple[int, ...]]]
"""By number of dimensions, the orders that a tool gives a weight's dimensions."""


def verified(
    path: str | os.PathLike[str],
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    *,
    who: str,
    runtime: str,
    read: Callable[[str | os.PathLike[str]], File],
    orders: Orders,
    tell: Callable[[DeviceVerification, File], None],
    ways: Callable[[File], Iterable[Way]],
) -> DeviceVerification:
    """Read a file, compare its weights with the model's, and run it in every way.

    Args:
        path, model, inputs: As the integrations' ``verify`` has them.
        who: The host's name.
        runtime: In words.
        read: Reads the file; ValueError if it is damaged.
        orders: How the tool lays out weights.
        tell: Says what else was found in the file.
        ways: How it is run; ValueError if it cannot be loaded at all.

    Raises:
        TypeError: a model that is no graph.
    """
    if not isinstance(model, GraphModule):
        raise TypeError(
            "verify: expected the graph that was exported, export(...).model; got "
            f"{type(model).__name__}."
        )
    arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    graph = to_int8(model, who)
    verdict = DeviceVerification(os.fspath(path), runtime)
    try:
        file = read(path)
    except ValueError as error:
        verdict.problems.append(str(error))
        return verdict
    verdict.operators, verdict.batch = file.operators, file.batch
    verdict.integer_layers, verdict.float_layers = file.integer_layers, file.float_layers
    if not file.integer_layers:
        verdict.problems.append("no layer runs in integers: nothing in this file is quantized.")
    tell(verdict, file)
    weights = int8_weights(graph)
    lacking = missing(weights, file.weights, orders)
    verdict.problems += lacking
    verdict.weights = len(weights) - len(lacking)
    verdict.tolerance = file.output_step
    try:
        listed = list(ways(file))
    except ValueError as error:
        verdict.problems.append(str(error))
        return verdict
    for size, how, load in listed:
        try:
            samples = sized(arguments, max(size, len(arguments[0])))
            verdict.compare(graph, load(), samples, size, how)
        except ValueError as error:
            verdict.problems.append(f"{how or f'batches of {size}'}: {error}")
    return verdict
