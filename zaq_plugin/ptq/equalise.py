"""Cross-layer equalisation and high-bias absorption (DFQ, Nagel et al., ICCV 2019, section 4.1).

ReLU lets a positive factor per channel pass: ``W2 relu(W1 x + b1) = (W2 S) relu(S^-1 W1 x + S^-1
b1)``. S is chosen so that both layers use the same range in every channel, which is what one grid
per tensor needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from zaq_plugin.layers import out_features
from zaq_plugin.ptq.bake import bake_parametrizations, copied
from zaq_plugin.ptq.channels import (
    BoundedReLU,
    add_to_bias,
    input_ranges,
    linear_response,
    output_ranges,
    scale_inputs,
    scale_outputs,
    wide_weight,
)
from zaq_plugin.ptq.connections import Connection, connections, layer_graph
from zaq_plugin.ptq.fold import Remembered
from zaq_plugin.ptq.wrappers import unwrapped

ModelT = TypeVar("ModelT", bound=nn.Module)

SIGMAS = 3.0
"""So many deviations below its mean a channel practically never goes (DFQ, section 4.1.3)."""


@dataclass
class Equalised:
    """What was done.

    Attributes:
        model: The rescaled model; a graph module where a ReLU6 is no module of its own.
        pairs: The connections that were equalised.
        factors: For each first layer the factor that its output was divided by, (channels,).
        skipped: For each other layer the reason.
        bounds: For each first layer before a ReLU6 the activation that took its place.
        absorbed: For each first layer what was taken out of its bias, once `absorb_bias` ran.
    """

    model: nn.Module
    pairs: list[Connection]
    factors: dict[str, Tensor]
    skipped: dict[str, str]
    bounds: dict[str, BoundedReLU] = field(default_factory=dict)
    absorbed: dict[str, Tensor] = field(default_factory=dict)


def equalise(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    replace_relu6: bool = False,
    iterations: int = 30,
    tolerance: float = 1e-3,
) -> Equalised:
    """Rescale channels until connected layers use equal ranges; the function stays the same.

    ``s_i = sqrt(r1_i r2_i) / r2_i`` for every channel between two layers (equation 11), pair after
    pair, again and again until nothing moves. A ReLU6 gets a bound per channel (`BoundedReLU`), so
    that it stays what it was.

    Args:
        model: BatchNorm folded, in evaluation mode; it is not touched.
        example_inputs: Needed where torch.fx cannot trace the model, and where views or flattens
            between layers depend on shapes; pairs around those are skipped without.
        replace_relu6: Put a plain ReLU in the place of ReLU6, as the paper does; the model then
            computes something else, which costs accuracy.
        iterations: Passes over all pairs, at most.
        tolerance: Largest change of a factor in the last pass.

    Raises:
        ValueError: If no two layers are connected.
    """
    model = copied(unwrapped(model))
    bake_parametrizations(model)
    graph = layer_graph(model, example_inputs)
    pairs, skipped = connections(graph)
    model, bounds = _bounded(model, graph, pairs, skipped, replace_relu6)
    pairs = [p for p in pairs if p.bound is None or p.first in bounds or replace_relu6]
    if not pairs:
        shown = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:4])
        raise ValueError(
            f"nothing to equalise in {type(model).__name__}: no two convolution or linear layers "
            f"are connected by ReLU, ReLU6 or nothing ({shown or 'it has no such layers'})"
        )
    factors: dict[str, Tensor] = {}
    with torch.no_grad():
        for _ in range(iterations):
            largest = 0.0
            for pair in pairs:
                scale = _rescale(model, pair, bounds.get(pair.first))
                factor = factors.get(pair.first)
                factors[pair.first] = scale if factor is None else factor * scale
                largest = max(largest, float(scale.log().abs().max()))
            if largest < tolerance:
                break
    return Equalised(model, pairs, factors, skipped, bounds)


def _rescale(model: nn.Module, pair: Connection, bound: BoundedReLU | None) -> Tensor:
    """One pair's factors s, applied: the first layer is divided by them, the second multiplied."""
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    r1, r2 = output_ranges(first), input_ranges(second)
    index = pair.index.to(r2.device)  # of a flattened map many features are one channel
    grouped = torch.zeros_like(r1).scatter_reduce(0, index, r2, "amax")
    scale = (r1 / grouped).sqrt()  # sqrt(r1 r2) / r2
    usable = (r1 > 0) & (grouped > 0) & scale.isfinite()
    scale = torch.where(usable, scale, torch.ones_like(scale))
    scale_outputs(first, 1 / scale)
    scale_inputs(second, scale[index])
    if bound is not None:
        bound.bound.div_(scale)
    return scale


def _bounded(
    model: nn.Module,
    graph: fx.GraphModule,
    pairs: Sequence[Connection],
    skipped: dict[str, str],
    replace: bool,
) -> tuple[nn.Module, dict[str, BoundedReLU]]:
    """Give every ReLU6 between two layers a module of its own, or make it a ReLU.

    Returns:
        The model, and for each first layer its bounded activation.
    """
    pairs_by_bound = {p.bound: p for p in pairs if p.bound is not None}
    calls: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    bounds: dict[str, BoundedReLU] = {}
    names = dict(model.named_modules())
    rewritten = False
    for node in list(graph.graph.nodes):
        pair = pairs_by_bound.get(node.name)
        if pair is None:
            continue
        own = node.op == "call_module" and calls[str(node.target)] == 1
        if own and isinstance(names.get(str(node.target)), BoundedReLU) and not replace:
            bounds[pair.first] = names[str(node.target)]
            continue
        first = graph.get_submodule(pair.first)
        like = first.weight
        assert isinstance(like, Tensor)
        sixes = torch.full((out_features(first),), 6.0, device=like.device)
        bound = BoundedReLU(sixes, pair.bound_axis)
        new: nn.Module = nn.ReLU() if replace else bound
        if own and str(node.target) in names:
            model.set_submodule(str(node.target), new)
            graph.set_submodule(str(node.target), new)
        else:
            name = f"{node.name}_bounded"
            graph.add_submodule(name, new)
            with graph.graph.inserting_before(node):
                call = graph.graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(call)
            graph.graph.erase_node(node)
            rewritten = True
        if not replace:
            bounds[pair.first] = bound
    if rewritten:
        graph.recompile()
        graph.train(model.training)
        return graph, bounds
    return model, bounds


def absorb_bias(
    done: Equalised, remembered: Remembered, sigmas: float = SIGMAS, *, borders: bool = False
) -> None:
    """Move what a channel always exceeds from the first layer's bias to the second's, in place.

    ``c = max(0, β - 3 γ)``: a ReLU input with mean β and deviation γ is practically always above c,
    so that ``relu(x - c) = relu(x) - c``; the first bias loses c, the second gains ``W2 c``, and a
    bound loses c as well (equations 14 to 16). A second layer that looks beyond the border would
    see zeros there where it should see -c; the paper lives with that, here such a pair is left
    alone, unless ``borders`` says otherwise.

    Args:
        done: What `equalise` returned; its model changes.
        remembered: Means and deviations of the layers' outputs, rescaled like the model; the means
            change with the biases.
        sigmas: 3 in the paper.
        borders: Absorb into layers with kernels of more than one position, too.
    """
    for pair in done.pairs:
        normal = remembered.get(pair.first)
        if normal is None or pair.between == "none":
            continue
        first = done.model.get_submodule(pair.first)
        second = done.model.get_submodule(pair.second)
        wide_kernel = any(k > 1 for k in wide_weight(second).shape[2:])
        if not isinstance(first.bias, nn.Parameter) or (wide_kernel and not borders):
            continue
        c = (normal.mean - sigmas * normal.deviation).clamp(min=0)
        bound = done.bounds.get(pair.first)
        if bound is not None:  # what is cut off above does not get through
            c = torch.minimum(c, bound.bound.to(c))
        if not bool((c > 0).any()):
            continue
        with torch.no_grad():
            first.bias.sub_(c.to(first.bias))
            offset = c[pair.index.to(c.device)]
            add_to_bias(second, linear_response(second, wide_weight(second), offset))
            if bound is not None:
                bound.bound.sub_(c.to(bound.bound))
        remembered[pair.first] = normal.shifted(-c)
        done.absorbed[pair.first] = c
