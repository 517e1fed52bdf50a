"""Blocks: the pieces of a student that are reconstructed one after the other.

A block maps one tensor to one tensor and holds at least one quantized weight: a residual block, or
a single layer where there is no residual. In an eager model blocks are modules; in a graph they are
the stretches between nodes that all later data passes through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from zaq_plugin.layers import hooked
from zaq_plugin.reconstruction.graph_blocks import Block, Call, graph_blocks, layer_blocks
from zaq_plugin.student import QuantLayer, Student, reached_layers, student_of

LARGEST_BLOCK = 8
"""Modules with more quantized weights than this are cut further where they can be."""


class Blocks(list[Block]):
    """Blocks in the order of execution.

    Attributes:
        uncovered: For each weight fake-quantizer that lies in no block the reason.
    """

    def __init__(self, blocks: Iterable[Block], uncovered: Mapping[str, str]) -> None:
        super().__init__(blocks)
        self.uncovered = dict(uncovered)

    def note(self) -> str:
        """What is left to error feedback or to the nearest levels, and why; empty if nothing is."""
        parts = [
            f"{name.partition('.parametrizations.')[0]} ({reason})"
            for name, reason in self.uncovered.items()
        ]
        rest = f" and {len(parts) - 4} more" if parts[4:] else ""
        return ", ".join(parts[:4]) + rest


def find_blocks(
    student: nn.Module, teacher: nn.Module, example: Tensor, largest: int = LARGEST_BLOCK
) -> Blocks:
    """Cut a prepared student into blocks, in the order of execution.

    A weight that is used at several places (a layer called twice, a tied parameter) has no one
    output to be tuned for and belongs to no block, unless all its uses lie in one; what is left out
    is told in ``uncovered``.

    Args:
        student: The prepared student.
        teacher: Its twin.
        example: A small batch of images.
        largest: Modules with more quantized weights are cut further; 1 makes every layer a block.

    Raises:
        ValueError: if no quantized weight lies in any block.
    """
    layers = reached_layers(student, example)
    tied = _tied(layers)
    layers = [layer for layer in layers if layer.slot.name not in tied]
    names = [layer.slot.name for layer in layers]
    layers_alone = largest == 1 and all(".parametrizations." in name for name in names)
    if isinstance(student, fx.GraphModule) and not layers_alone:
        if not isinstance(teacher, fx.GraphModule):
            raise ValueError("the student is a graph, but the teacher is not: use twin(student).")
        cut = layer_blocks if largest == 1 else graph_blocks
        blocks, reasons = cut(student, teacher, names)
    else:
        view = student_of(student)
        blocks, reasons = _module_blocks(view, teacher, layers, example, largest)
    parts = Blocks(blocks, tied | reasons)
    if not blocks:
        raise ValueError(
            f"no block with one tensor in and one out holds {parts.note()}; such a layer cannot be "
            "reconstructed by itself, and there is no other. Train without "
            "(ZeroShotConfig(reconstruct=False)), or use a strategy that does not reconstruct, "
            "such as 'gptq' or 'pwlq'."
        )
    return parts


def uncovered_weights(
    student: nn.Module, teacher: nn.Module, example: Tensor, largest: int = LARGEST_BLOCK
) -> str:
    """What `find_blocks` leaves out, as text for a note: empty if nothing, or if there is no block.

    Args:
        student, teacher, example, largest: As for `find_blocks`.
    """
    try:
        return find_blocks(student, teacher, example, largest).note()
    except ValueError:
        return ""


def _tied(layers: Sequence[QuantLayer]) -> dict[str, str]:
    """Weights whose parameter feeds several fake-quantizers, with the reason."""
    feeds = Counter(id(layer.parameter) for layer in layers)
    return {
        layer.slot.name: f"its weight is shared by {feeds[id(layer.parameter)]} layers"
        for layer in layers
        if feeds[id(layer.parameter)] > 1
    }


@dataclass
class _Trace:
    """How a module was called."""

    order: int
    calls: int = 0
    plain: bool = True


def _module_blocks(
    view: Student,
    teacher: nn.Module,
    layers: Sequence[QuantLayer],
    example: Tensor,
    largest: int,
) -> tuple[list[Block], dict[str, str]]:
    """The blocks, and for each weight in none of them the reason."""
    student = view.model
    traces = _trace(student, example)
    places = {layer.slot.name: f"{layer.name}.weight" for layer in layers}
    chosen: list[str] = []

    def holds(prefix: str) -> list[str]:
        return [n for n, at in places.items() if prefix == "" or at.startswith(prefix + ".")]

    def called(prefix: str) -> bool:  # itself, or, as a mere container, what it holds
        return prefix in traces or any(name.startswith(prefix + ".") for name in traces)

    def visit(name: str, module: nn.Module) -> None:
        inside = holds(name)
        if not inside:
            return
        children = [
            (f"{name}.{child}" if name else child, part) for child, part in module.named_children()
        ]
        busy = [c for c in children if holds(c[0]) and called(c[0])]
        trace = traces.get(name)
        usable = trace is not None and trace.calls == 1 and trace.plain
        leaf = not busy or len({n for c in busy for n in holds(c[0])}) < len(inside)
        chain = isinstance(module, nn.Sequential) and len(busy) > 1
        if name and usable and (leaf or (not chain and len(inside) <= largest)):
            chosen.append(name)
            return
        for child, part in busy:
            visit(child, part)

    visit("", student)
    chosen.sort(key=lambda name: traces[name].order)
    blocks = [
        Block(
            name=name,
            student=partial(view.part, student, name),
            teacher=partial(view.part, teacher, name),
            weights=tuple(holds(name)),
            modules=(student.get_submodule(name), *view.quantizers_inside(name)),
            student_input=_input_of(student, name),
            teacher_input=_input_of(teacher, name),
        )
        for name in chosen
    ]
    covered = {name for block in blocks for name in block.weights}
    reasons = {n: _why_in_none(at, traces) for n, at in places.items() if n not in covered}
    return _with_chains(blocks, example), reasons


def _why_in_none(place: str, traces: Mapping[str, _Trace]) -> str:
    """Why the layer at a place is no block of its own."""
    name = place.removesuffix(".weight")
    while name and name not in traces:
        name = name.rpartition(".")[0]
    trace = traces.get(name)
    if trace is None or not name:
        return "no module that is called holds it"
    if trace.calls > 1:
        return f"it is called {trace.calls} times"
    return "it is not called with one tensor to give one"


@torch.no_grad()
def _with_chains(blocks: list[Block], example: Tensor) -> list[Block]:
    """Mark the blocks whose input is what the block before them gave, bit for bit."""
    marked: list[Block] = []
    before: Tensor | None = None
    for block in blocks:
        x = block.teacher_input(example)
        chained = before is not None and before.shape == x.shape and torch.equal(before, x)
        marked.append(replace(block, chained=chained))
        before = block.teacher(x.clone())
    return marked


def _trace(model: nn.Module, example: Tensor) -> dict[str, _Trace]:
    traces: dict[str, _Trace] = {}
    handles = []
    for name, module in model.named_modules():

        def start(
            module: nn.Module, args: tuple[object, ...], kwargs: object, name: str = name
        ) -> None:
            trace = traces.setdefault(name, _Trace(order=len(traces)))
            trace.calls += 1
            trace.plain &= len(args) == 1 and isinstance(args[0], Tensor) and not kwargs

        def end(module: nn.Module, args: object, output: object, name: str = name) -> None:
            traces[name].plain &= isinstance(output, Tensor)

        handles.append(module.register_forward_pre_hook(start, with_kwargs=True))
        handles.append(module.register_forward_hook(end))
    with hooked(handles), torch.no_grad():
        model(example.clone())
    return traces


class _Reached(Exception):
    """Raised to leave a forward pass once its input of interest is known."""


def _input_of(model: nn.Module, name: str) -> Call:
    module = model.get_submodule(name)

    def run(images: Tensor) -> Tensor:
        inputs: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs.append(args[0])
            raise _Reached

        # Before the module's own hooks, which may quantize the input.
        handle = module.register_forward_pre_hook(stop, prepend=True)
        with hooked([handle]), suppress(_Reached):
            model(images.clone())
        return inputs[0]

    return run
