"""What a block is, and cutting a graph into blocks (torch.ao FX, torchao PT2E)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from zaq_plugin.student.fake_quantizers import is_fake_quantizer

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


def graph_blocks(
    student: fx.GraphModule, teacher: fx.GraphModule, names: Sequence[str]
) -> tuple[list[Block], dict[str, str]]:
    """Blocks of a prepared graph: stretches between nodes that all later data passes through.

    Returns:
        The blocks, and for each weight that several of them use, or none, the reason why it is in
        none.

    Args:
        student: The prepared graph.
        teacher: Its twin, with the same node names.
        names: Names of the weight fake-quantizers.
    """
    nodes = list(student.graph.nodes)
    weights_at = {node: _held(student, node, names) for node in nodes}
    cuts = _cuts(student, weights_at)
    stretches = [(a, b, _stretch_weights(a, b, weights_at)) for a, b in itertools.pairwise(cuts)]
    uses = Counter(name for _, _, inside in stretches for name in inside)
    reasons = {name: f"it is used in {uses[name]} places" for name in names if uses[name] > 1}
    reasons |= {
        name: "no part of the graph with one tensor in and one out holds it"
        for name in names
        if not uses[name]
    }
    stretches = [(a, b, [n for n in inside if n not in reasons]) for a, b, inside in stretches]
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
            start, _, members = bounds.pop()
            bounds.append((start, last, members))
    if len(bounds) > 1 and not bounds[-1][2]:
        _, last, _ = bounds.pop()
        start, _, members = bounds.pop()
        bounds.append((start, last, members))
    return _blocks(student, teacher, [b for b in bounds if b[2]]), reasons


def layer_blocks(
    student: fx.GraphModule, teacher: fx.GraphModule, names: Sequence[str]
) -> tuple[list[Block], dict[str, str]]:
    """Every layer by itself, from what it multiplies to what it gives; as `graph_blocks`."""
    data = set(_data_nodes(student))
    users: dict[str, list[fx.Node]] = {name: [] for name in names}
    for node in student.graph.nodes:
        for name in _held(student, node, names):
            users[name] += [node] if node in data else [n for n in node.users if n in data]
    bounds, reasons = [], {}
    for name, nodes in users.items():
        inputs = [n for node in nodes for n in node.all_input_nodes if n in data]
        if len(nodes) > 1:
            reasons[name] = f"it is used in {len(nodes)} places"
        elif len(inputs) != 1:
            reasons[name] = "it is no layer with one tensor in and one out"
        else:
            bounds.append((inputs[0], nodes[0], [name]))
    return _blocks(student, teacher, bounds), reasons


def _blocks(
    student: fx.GraphModule,
    teacher: fx.GraphModule,
    bounds: Sequence[tuple[fx.Node, fx.Node, list[str]]],
) -> list[Block]:
    """A block for the graph between two nodes, and the weights' quantizers in it."""
    twins = {node.name: node for node in teacher.graph.nodes}
    source = next(n for n in student.graph.nodes if n.op == "placeholder")
    blocks: list[Block] = []
    for index, (first, last, inside) in enumerate(bounds):
        part = _subgraph(student, first, last)
        blocks.append(
            Block(
                name=f"{first.name}..{last.name}",
                student=part,
                teacher=_subgraph(teacher, twins[first.name], twins[last.name]),
                weights=tuple(inside),
                modules=(part,),
                student_input=_subgraph(student, source, first),
                teacher_input=_subgraph(teacher, twins[source.name], twins[first.name]),
                chained=index > 0 and bounds[index - 1][1] is first,
            )
        )
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


def _cuts(model: fx.GraphModule, weights_at: dict[fx.Node, list[str]]) -> list[fx.Node]:
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


def _stretch_weights(
    first: fx.Node, last: fx.Node, weights_at: dict[fx.Node, list[str]]
) -> list[str]:
    weights: list[str] = []
    for node in _between(first, last):
        for name in weights_at.get(node, []):
            if name not in weights:
                weights.append(name)
    return weights


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
