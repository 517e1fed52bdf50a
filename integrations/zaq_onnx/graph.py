"""An ONNX graph that can be edited: constants as arrays, producers and consumers by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

MOVES = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad")
"""Operators behind which a tensor is on the grid that it was on, also for ONNX Runtime."""


class Graph:
    """Nodes and constants of a model's graph.

    Args:
        model: Its graph is read; `to_model` writes a new one.

    Attributes:
        nodes: In topological order.
        constants: Initializers, and what Constant nodes held.
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs.
        completed: How many tensors were given a grid that the model did not have.
        reduced: How many weights were put on a coarser grid.
        layers: Names of layers by their outputs, as far as they are known.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.constants: dict[str, TensorProto] = {t.name: t for t in model.graph.initializer}
        self.nodes: list[NodeProto] = []
        self.inputs = [i.name for i in model.graph.input if i.name not in self.constants]
        self.outputs = [o.name for o in model.graph.output]
        self._arrays: dict[str, Array] = {}
        self._number = 0
        self.completed = 0
        self.reduced = 0
        self.layers: dict[str, str] = {}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                tensor = TensorProto()
                tensor.CopyFrom(node.attribute[0].t)
                tensor.name = node.output[0]
                self.constants[tensor.name] = tensor
            else:
                self.nodes.append(node)

    # ---- looking ---------------------------------------------------------------------------------

    def array(self, name: str) -> Array | None:
        """A constant's value, or None."""
        if name not in self.constants:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.constants[name])
        return self._arrays[name]

    def producers(self) -> dict[str, NodeProto]:
        """Who makes each tensor."""
        return {name: node for node in self.nodes for name in node.output if name}

    def consumers(self) -> dict[str, list[NodeProto]]:
        """Who reads each tensor; a graph output is read by nobody, see ``outputs``."""
        readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                if name:
                    readers[name].append(node)
        return readers

    def of_type(self, *kinds: str) -> Iterator[NodeProto]:
        """Nodes of these operators."""
        return (node for node in list(self.nodes) if node.op_type in kinds)

    # ---- changing --------------------------------------------------------------------------------

    def add_constant(self, name: str, value: Array, *, kind: int | None = None) -> str:
        """A new constant; the name is made unique."""
        name = self.free(name)
        if kind == TensorProto.UINT4:
            flat = np.pad(value.reshape(-1).astype(np.uint8), (0, value.size % 2))
            packed = (flat[::2] | flat[1::2] << 4).tobytes()
            tensor = helper.make_tensor(name, kind, value.shape, packed, raw=True)
        else:  # numpy turns scalars into arrays of one dimension where it can
            tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        self.constants[name] = tensor
        return name

    def rename_constant(self, old: str, new: str) -> None:
        """Give a constant a free name."""
        tensor = self.constants[old]
        self.drop_constant(old)
        tensor.name = new
        self.constants[new] = tensor
        self.rename_input(old, new)

    def drop_constant(self, name: str) -> None:
        """Forget a constant, whose name is free then."""
        self.constants.pop(name, None)
        self._arrays.pop(name, None)

    def free(self, name: str) -> str:
        """The name itself, or with a number if it is taken."""
        taken = name in self.constants or any(name in n.output for n in self.nodes)
        if not taken and name not in self.inputs:
            return name
        self._number += 1
        return self.free(f"{name}_{self._number}")

    def rename_input(self, old: str, new: str) -> None:
        """Let everybody who reads one tensor read another."""
        for node in self.nodes:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new

    def insert_before(self, position: NodeProto, *nodes: NodeProto) -> None:
        """Put nodes in front of another."""
        index = next(i for i, node in enumerate(self.nodes) if node is position)
        self.nodes[index:index] = nodes

    def insert_after(self, position: NodeProto, *nodes: NodeProto) -> None:
        """Put nodes behind another."""
        index = next(i for i, node in enumerate(self.nodes) if node is position)
        self.nodes[index + 1 : index + 1] = nodes

    def remove(self, node: NodeProto) -> None:
        """Take a node out."""
        self.nodes = [n for n in self.nodes if n is not node]

    def prune(self) -> None:
        """Drop nodes and constants that nothing needs."""
        needed = set(self.outputs)
        nodes = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                nodes.append(node)
                needed.update(name for name in node.input if name)
        self.nodes = nodes[::-1]
        for name in [name for name in self.constants if name not in needed]:
            self.drop_constant(name)

    def sort(self) -> None:
        """Topological order, stable."""
        available = {*self.constants, *self.inputs, ""}
        waiting, ordered = list(self.nodes), []
        while waiting:
            rest = []
            for node in waiting:
                if all(name in available for name in node.input):
                    ordered.append(node)
                    available.update(node.output)
                else:
                    rest.append(node)
            if len(rest) == len(waiting):
                raise ValueError(f"the graph has a cycle around {rest[0].op_type} {rest[0].name!r}")
            waiting = rest
        self.nodes = ordered

    def to_model(self) -> ModelProto:
        """A model with this graph; inputs, outputs, operator sets and metadata as they were."""
        self.prune()
        self.sort()
        model = ModelProto()
        model.CopyFrom(_without_graph(self.model))
        graph = model.graph
        graph.name = self.model.graph.name
        graph.input.extend(i for i in self.model.graph.input if i.name not in self.constants)
        graph.output.extend(self.model.graph.output)
        graph.node.extend(self.nodes)
        for name in sorted(self.constants):
            tensor = self.constants[name]
            tensor.name = name
            graph.initializer.append(tensor)
        return model


def _without_graph(model: ModelProto) -> ModelProto:
    bare = ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if isinstance(value, int | str):
            setattr(bare, field.name, value)
        else:
            getattr(bare, field.name).extend(value)
    return bare


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, or the default."""
    for proto in node.attribute:
        if proto.name == name:
            return helper.get_attribute_value(proto)
    return default


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Set an attribute, in place of an old one."""
    attributes = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*attributes, helper.make_attribute(name, value)])


def make(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    """A node with one output, named after it."""
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def opset_of(model: ModelProto) -> int:
    """Version of the standard operators that a model asks for; 0 if it names none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def metadata_of(model: ModelProto) -> dict[str, str]:
    """The model's metadata."""
    return {entry.key: entry.value for entry in model.metadata_props}


def set_metadata(model: ModelProto, values: dict[str, str]) -> None:
    """Add to the model's metadata, in place of entries with the same keys."""
    merged = {**metadata_of(model), **values}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(merged.items())))
