"""An exported graph as modules that every tool knows: convolutions, BatchNorms, activations."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_plugin.ptq import restore_layers

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cat": torch.cat,
    "add": torch.add,
    "mul": torch.mul,
    "flatten": torch.flatten,
}
"""Operators that keep their arguments when they become functions of torch."""


def to_modules(program: fx.GraphModule) -> fx.GraphModule:
    """What ``ExportedProgram.module()`` gives, with a module for each layer.

    Convolutions and linear layers come from `zaq_plugin.ptq.restore_layers`; BatchNorm, ReLU,
    ReLU6, PReLU, padding, pooling and upsampling follow here, so that tools which look for modules
    find them.

    Raises:
        ValueError: If the graph holds an operator that is not known here.
    """
    root = restore_layers(program)
    graph, nodes = fx.Graph(), dict[fx.Node, Any]()
    batch = None
    for node in root.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: nodes.get(n))
        if node.op == "placeholder":
            nodes[node] = batch = graph.placeholder("x")
        elif node.op == "get_attr":
            nodes[node] = attrgetter(str(node.target))(root)
        elif node.op == "output":
            output = args[0]
            graph.output(output[0] if isinstance(output, list | tuple) else output)
        elif node.op == "call_module":
            if str(node.target) == "_guards_fn":
                continue
            nodes[node] = graph.call_module(str(node.target), tuple(args))
        else:
            nodes[node] = _operator(root, graph, node, list(args), dict(kwargs))
    if batch is None:
        raise ValueError("the graph has no input; pass what torch.export(...).module() gives")
    return fx.GraphModule(root, graph).eval()


def scale_input(model: fx.GraphModule, factor: float) -> fx.GraphModule:
    """The graph with its input multiplied by a factor first, in place."""
    (image,) = (node for node in model.graph.nodes if node.op == "placeholder")
    with model.graph.inserting_after(image):
        scaled = model.graph.call_function(torch.mul, (image, factor))
    image.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    model.recompile()
    return model


def _operator(
    root: nn.Module, graph: fx.Graph, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> fx.Node:
    """One aten operator as a module or a function of torch."""
    target: Any = node.target
    name = target._schema.name.partition("::")[2]
    arguments = {a.name: v for a, v in zip(target._schema.arguments, args, strict=False)} | kwargs
    # Lists of a graph are immutable, which some tools stumble over.
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    layer: nn.Module | None = None
    if name == "batch_norm":
        layer = _batch_norm(arguments)
    elif name in ("relu", "relu_"):
        layer = nn.ReLU()
    elif name in ("hardtanh", "hardtanh_", "relu6", "relu6_"):
        bounds = arguments.get("min_val", 0.0), arguments.get("max_val", 6.0)
        layer = nn.ReLU6() if bounds == (0.0, 6.0) else nn.Hardtanh(*bounds)
    elif name == "pad":
        layer = _padding(arguments)
    elif name == "adaptive_avg_pool2d":
        layer = nn.AdaptiveAvgPool2d(arguments["output_size"])
    elif name == "sigmoid":
        layer = nn.Sigmoid()
    elif name == "softmax":
        layer = nn.Softmax(arguments["dim"])
    elif name == "prelu":
        layer = nn.PReLU(arguments["weight"].numel())
        layer.weight = nn.Parameter(arguments["weight"].detach(), requires_grad=False)
    elif name in ("max_pool2d", "avg_pool2d"):
        kind: Any = nn.MaxPool2d if name == "max_pool2d" else nn.AvgPool2d
        layer = kind(
            arguments["kernel_size"], arguments.get("stride") or None, arguments.get("padding", 0)
        )
    elif name == "upsample_nearest2d":
        layer = nn.Upsample(scale_factor=tuple(arguments["scale_factors"]), mode="nearest")
    if layer is not None:
        label = f"{name.rstrip('_')}_{sum(1 for _ in root.children())}_of_graph"
        root.add_module(label, layer)
        return graph.call_module(label, (args[0],))
    if name == "slice":
        index = [slice(None)] * arguments.get("dim", 0)
        cut = slice(arguments.get("start"), _end(arguments.get("end")), arguments.get("step", 1))
        return graph.call_function(slice_of, (args[0], (*index, cut)))
    if name not in FUNCTIONS:
        raise ValueError(f"operator {name!r} has no module here; add it to graph_modules.py")
    return graph.call_function(FUNCTIONS[name], tuple(args), kwargs)


def slice_of(x: Tensor, index: tuple[slice, ...]) -> Tensor:
    """Part of a tensor."""
    return x[index]


def _end(value: int | None) -> int | None:
    return None if value is None or value >= 2**62 else value


def _padding(options: dict[str, Any]) -> nn.ConstantPad2d:
    if options.get("mode", "constant") != "constant" or len(options["pad"]) > 4:
        raise ValueError(
            "operator 'pad' is known for constants on height and width; got mode "
            f"{options['mode']!r} and widths {tuple(options['pad'])}; add it to graph_modules.py"
        )
    widths = (*options["pad"], *(0 for _ in range(4 - len(options["pad"]))))
    return nn.ConstantPad2d(widths, options.get("value") or 0.0)


def _batch_norm(arguments: dict[str, Any]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(arguments["running_mean"].numel(), eps=arguments["eps"])
    state = {n: arguments[n] for n in ("weight", "bias", "running_mean", "running_var")}
    norm.load_state_dict({**state, "num_batches_tracked": torch.tensor(0)})
    return norm.requires_grad_(False).eval()
