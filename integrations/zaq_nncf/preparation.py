"""Making a float model fit for NNCF: BatchNorm folded, and a root that NNCF can wrap."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_nncf._compat import is_wrapped
from zaq_nncf.calibration import own
from zaq_plugin.layers import LAYERS, out_features
from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.ptq.fold import Folding
from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.student.batches import inputs_of
from zaq_plugin.student.modes import evaluating


class Root(nn.Module):
    """A root around a model that NNCF cannot wrap itself; the model is its child ``model``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """What the model computes."""
        return self.model(x)


class GraphRoot(nn.Module):
    """A root around a traced graph of several inputs, which it takes by the graph's names.

    NNCF places quantizers on inputs by their names in the signature.
    """

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__()
        self.model = model
        self.forward = _Forward(self)


class _Forward:
    """What a `GraphRoot` computes, with the signature of its graph."""

    def __init__(self, root: GraphRoot) -> None:
        self.root = root

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.root.model(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.root.model.forward)

    __name__ = "forward"


def prepare_model(model: nn.Module, example_input: Any = None) -> nn.Module:
    """A copy of a float model, in evaluation mode, that NNCF can quantize well.

    BatchNorm is folded: NNCF leaves it, and then int8 runtimes compute it in float. Weights that
    are computed at every call (weight_norm, pruning, weight standardisation) become plain ones. An
    ``nn.Sequential`` gets a root around it (NNCF's hooks would become one of its layers), and so
    does a traced ``fx.GraphModule`` (NNCF would take it for its other backend); names inside then
    begin with ``model.``. `quantize` does all this by itself; a checkpoint is loaded into what this
    function gives.

    Args:
        model: Any float module; it is not touched.
        example_input: A tensor, tuple or mapping that the model is called with. Needed where
            torch.fx cannot trace the model, and for a linear layer before a BatchNorm.

    Raises:
        TypeError: an exported graph, or something that is no module.
        ValueError: the model is quantized already, or holds weights that are not finite.
    """
    original: object = model
    if not isinstance(original, nn.Module):
        raise TypeError(f"prepare_model expects an nn.Module, got {type(original).__name__}.")
    model = unwrapped(model)
    if is_wrapped(model):
        raise ValueError(
            f"this {type(model).__name__} is wrapped by NNCF already; pass the float model."
        )
    if isinstance(model, fx.GraphModule) and _is_exported(model):
        raise TypeError(
            "this graph is from torch.export, and NNCF's torch backend sees no layers in it. Pass "
            "the module that was exported, or quantize the graph with zaq_pt2e."
        )
    check_weights(model)
    examples = None
    example_input = own(example_input)
    if isinstance(example_input, Tensor):
        examples = (example_input,)
    elif isinstance(example_input, tuple):
        examples = example_input
    with evaluating(model):
        folded = fold_batch_norm(model, examples)
    folded.eval()
    layer: Any
    for layer in folded.modules():
        if type(layer) in LAYERS and layer.bias is None:  # for correction
            _give_bias(layer)
    prepared: object = folded
    if isinstance(prepared, fx.GraphModule) and inputs_of(prepared) > 1:
        return GraphRoot(prepared).eval()
    if isinstance(folded, nn.Sequential | nn.ModuleList | nn.ModuleDict | fx.GraphModule):
        return Root(folded).eval()
    return folded


def baked_layers(prepared: nn.Module) -> set[str]:
    """Layers of a prepared model whose weight was computed at every call, and is no longer."""
    rooted = isinstance(prepared, Root | GraphRoot)
    folding = getattr(prepared.model if rooted else prepared, "zaq_folding", None)
    names = folding.baked if isinstance(folding, Folding) else ()
    return {f"model.{name}" if rooted else name for name in names}


def _is_exported(model: fx.GraphModule) -> bool:
    return any(isinstance(n.target, torch._ops.OpOverload) for n in model.graph.nodes)


def _give_bias(layer: Any) -> None:
    """A bias of zero."""
    zeros = layer.weight.detach().new_zeros(out_features(layer))
    layer.bias = nn.Parameter(zeros, requires_grad=layer.weight.requires_grad)


def check_weights(model: nn.Module) -> None:
    """Raise ValueError for weights that are NaN or infinite."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        weight: Any = layer.weight
        kind = type(layer).__name__
        if weight.numel() and not bool(torch.isfinite(weight).all()):
            count = int((~torch.isfinite(weight)).sum())
            raise ValueError(
                f"{name} ({kind}): {count} of {weight.numel()} weights are NaN or infinite; repair "
                "the checkpoint."
            )
