"""Blocks: the pieces of a student that are reconstructed one after the other.

A block maps one tensor to one tensor and holds at least one quantized weight: a residual block, or
a single layer where there is no residual. In an eager model blocks are modules; in a graph they are
the stretches between nodes that all later data passes through.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from zaq_plugin.zero_shot.quantizers import is_fake_quantizer, weight_slots

LARGEST_BLOCK = 8
"""Modules with more quantized weights than this are cut further where they can be."""

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """One block of a student and its counterpart in the teacher.

    Attributes:
        name: Module name, or ``first..last`` node names in a graph.
        student: The block of the student, x to y.
        teacher: The same block of the teacher.
        weights: Names of the weight fake-quantizers inside.
        modules: The modules of the student that the block consists of (for train / eval mode).
        student_input: Runs the student on images up to this block and returns the block's input.
        teacher_input: The same for the teacher.
        chained: Whether its input is the output of the block before it, as it stands.
    """

    name: str
    student: Call
    teacher: Call
    weights: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    student_input: Call
    teacher_input: Call
    chained: bool = False


def find_blocks(student: nn.Module, teacher: nn.Module, example: Tensor) -> list[Block]:
    """Cut a prepared student into blocks, in the order of execution.

    Args:
        student: The prepared student.
        teacher: Its twin.
        example: A small batch of images.

    Raises:
        ValueError: if a quantized weight lies in no block.
    """
    slots = weight_slots(student, example)
    names = [slot.name for slot in slots]
    if isinstance(student, fx.GraphModule):
        if not isinstance(teacher, fx.GraphModule):
            raise ValueError("the student is a graph, but the teacher is not: use twin(student).")
        blocks = _graph_blocks(student, teacher, names)
    else:
        blocks = _module_blocks(student, teacher, names, example)
    covered = {name for block in blocks for name in block.weights}
    missing = [name for name in names if name not in covered]
    if missing:
        raise ValueError(
            f"no block with one tensor in and one out holds {', '.join(missing)}; such a layer "
            "cannot be reconstructed by itself. Set reconstruct=False to train without."
        )
    return blocks


# ---- eager models ------------------------------------------------------------------------------


@dataclass
class _Trace:
    """How a module was called."""

    order: int
    calls: int = 0
    plain: bool = True


def _module_blocks(
    student: nn.Module, teacher: nn.Module, names: Sequence[str], example: Tensor
) -> list[Block]:
    traces = _trace(student, example)
    chosen: list[str] = []

    def holds(prefix: str) -> list[str]:
        return [n for n in names if prefix == "" or n.startswith(prefix + ".")]

    def visit(name: str, module: nn.Module) -> None:
        inside = holds(name)
        if not inside:
            return
        children = [
            (f"{name}.{child}" if name else child, part) for child, part in module.named_children()
        ]
        busy = [c for c in children if holds(c[0]) and c[0] in traces]
        trace = traces.get(name)
        usable = trace is not None and trace.calls == 1 and trace.plain
        leaf = not busy or len({n for c in busy for n in holds(c[0])}) < len(inside)
        chain = isinstance(module, nn.Sequential) and len(busy) > 1
        if name and usable and (leaf or (not chain and len(inside) <= LARGEST_BLOCK)):
            chosen.append(name)
            return
        for child, part in busy:
            visit(child, part)

    visit("", student)
    chosen.sort(key=lambda name: traces[name].order)
    blocks = [
        Block(
            name=name,
            student=student.get_submodule(name),
            teacher=teacher.get_submodule(name),
            weights=tuple(holds(name)),
            modules=(student.get_submodule(name),),
            student_input=_input_of(student, name),
            teacher_input=_input_of(teacher, name),
        )
        for name in chosen
    ]
    return _with_chains(blocks, example)


@torch.no_grad()
def _with_chains(blocks: list[Block], example: Tensor) -> list[Block]:
    """Mark the blocks whose input is what the block before them gave, bit for bit."""
    found: list[Block] = []
    before: Tensor | None = None
    for block in blocks:
        x = block.teacher_input(example)
        chained = before is not None and before.shape == x.shape and torch.equal(before, x)
        found.append(replace(block, chained=chained))
        before = block.teacher(x)
    return found


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
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return traces


class _Reached(Exception):
    """Raised to leave a forward pass once its input of interest is known."""


def _input_of(model: nn.Module, name: str) -> Call:
    module = model.get_submodule(name)

    def run(images: Tensor) -> Tensor:
        found: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.append(args[0])
            raise _Reached

        # Before the module's own hooks, which may quantize the input.
        handle = module.register_forward_pre_hook(stop, prepend=True)
        try:
            model(images)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]

    return run


# ---- graphs --------------------------------------------------------------------------------------


def _graph_blocks(
    student: fx.GraphModule, teacher: fx.GraphModule, names: Sequence[str]
) -> list[Block]:
    nodes = list(student.graph.nodes)
    held = {node: _held(student, node, names) for node in nodes}
    cuts = _cuts(student, held)
    stretches = [(a, b, _stretch_weights(a, b, held)) for a, b in itertools.pairwise(cuts)]
    # What holds no weight belongs to the block before it, but an activation's quantizer to the
    # block after it, which it feeds.
    bounds: list[tuple[fx.Node, fx.Node, list[str]]] = []
    for first, last, inside in stretches:
        quantizer = last.op == "call_module" and is_fake_quantizer(
            student.get_submodule(str(last.target))
        )
        waiting = bounds and not bounds[-1][2]
        if waiting:
            start, _, _ = bounds.pop()
            bounds.append((start, last, inside))
        elif inside or quantizer or not bounds:
            bounds.append((first, last, inside))
        else:
            start, _, kept = bounds.pop()
            bounds.append((start, last, kept))
    if len(bounds) > 1 and not bounds[-1][2]:
        _, last, _ = bounds.pop()
        start, _, kept = bounds.pop()
        bounds.append((start, last, kept))
    twins = {node.name: node for node in teacher.graph.nodes}
    blocks: list[Block] = []
    ends: list[fx.Node] = []
    for first, last, inside in bounds:
        if not inside:
            continue
        part = _subgraph(student, first, last)
        same = _subgraph(teacher, twins[first.name], twins[last.name])
        source = next(n for n in nodes if n.op == "placeholder")
        before = _subgraph(student, source, first)
        before_teacher = _subgraph(teacher, twins[source.name], twins[first.name])
        blocks.append(
            Block(
                name=f"{first.name}..{last.name}",
                student=part,
                teacher=same,
                weights=tuple(inside),
                modules=(part,),
                student_input=before,
                teacher_input=before_teacher,
                chained=bool(blocks) and ends[-1] is first,
            )
        )
        ends.append(last)
    return blocks


def _held(model: fx.GraphModule, node: fx.Node, names: Sequence[str]) -> list[str]:
    if node.op != "call_module":
        return []
    target = str(node.target)
    return [n for n in names if n == target or n.startswith(target + ".")]


def _data_nodes(model: fx.GraphModule) -> list[fx.Node]:
    """Nodes that depend on the images, in order (the output node left out)."""
    dependent: set[fx.Node] = set()
    for node in model.graph.nodes:
        if node.op == "placeholder" or any(n in dependent for n in node.all_input_nodes):
            dependent.add(node)
    return [n for n in model.graph.nodes if n in dependent and n.op != "output"]


def _cuts(model: fx.GraphModule, held: dict[fx.Node, list[str]]) -> list[fx.Node]:
    """Nodes that everything later depends on alone, from the input to the last single tensor."""
    data = _data_nodes(model)
    position = {node: i for i, node in enumerate(data)}
    cuts = []
    reach = -1
    for i, node in enumerate(data):
        # Every earlier node's users lie at or before this node.
        if reach <= i and node.op != "output" and _gives_tensor(node):
            cuts.append(node)
        users = [position[u] for u in node.users if u in position]
        outward = [u for u in node.users if u.op == "output"]
        reach = max(reach, len(data) if outward else max(users, default=i))
    return cuts


def _gives_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val", node.meta.get("tensor_meta"))
    if value is None:
        return node.op in ("placeholder", "call_module", "call_function", "call_method")
    return isinstance(value, Tensor) or hasattr(value, "shape")


def _stretch_weights(first: fx.Node, last: fx.Node, held: dict[fx.Node, list[str]]) -> list[str]:
    found: list[str] = []
    for node in _between(first, last):
        for name in held.get(node, []):
            if name not in found:
                found.append(name)
    return found


def _between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """Nodes that last needs, besides first and what first needs; in the graph's order."""
    needed: set[fx.Node] = set()
    queue = [] if last is first else [last]
    while queue:
        node = queue.pop()
        if node in needed or node is first:
            continue
        needed.add(node)
        queue.extend(node.all_input_nodes)
    return [n for n in last.graph.nodes if n in needed]


def _subgraph(model: fx.GraphModule, first: fx.Node, last: fx.Node) -> fx.GraphModule:
    """The graph from one node's value to another's, sharing all modules and parameters."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {first: graph.placeholder("x")}
    for node in _between(first, last):
        values[node] = graph.node_copy(node, lambda n: values[n])
    graph.output(values[last])
    part = fx.GraphModule(model, graph)
    part.training = False
    return part
