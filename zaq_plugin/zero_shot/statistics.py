"""What BatchNorms remember: the statistics that their inputs had in training.

Images whose activations have the same statistics look like training data to the model (ZeroQ,
DeepInversion, GDFQ).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zaq_plugin.graph import attribute_at

logger = logging.getLogger(__name__)


class BatchNormProbe(nn.Module):
    """Stands before a BatchNorm that is an operator of a graph, so that a hook finds its input."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, running_mean: Tensor, running_var: Tensor) -> None:
        super().__init__()
        self.register_buffer("running_mean", running_mean)
        self.register_buffer("running_var", running_var)

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """BatchNorms with running statistics, and probes, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm | BatchNormProbe)
        and isinstance(module.running_mean, Tensor)
    }


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there is any BatchNorm with running statistics, as a module or as a graph's operator.

    The model is not changed.
    """
    if batch_norms(model):
        return True
    graphs = [part.graph for part in model.modules() if isinstance(part, fx.GraphModule)]
    return any(
        node.op == "call_function" and "batch_norm" in str(node.target)
        for graph in graphs
        for node in graph.nodes
    )


def insert_probes(model: nn.Module) -> int:
    """Put a probe before each batch-norm operator of a graph; returns how many.

    Changes the graph (not what it computes): give it your own copy. Models that are no
    `fx.GraphModule` are left alone: their BatchNorms are modules.
    """
    if not isinstance(model, fx.GraphModule):
        return 0
    count = 0
    for node in list(model.graph.nodes):
        if node.op != "call_function" or "batch_norm" not in str(node.target):
            continue
        tensors = {}
        for argument in (*node.args[1:], *node.kwargs.values()):
            if isinstance(argument, fx.Node) and argument.op == "get_attr":
                tensors[str(argument.target)] = _attribute(model, str(argument.target))
        mean = next((t for n, t in tensors.items() if n.endswith("running_mean")), None)
        var = next((t for n, t in tensors.items() if n.endswith("running_var")), None)
        source = node.args[0] if node.args else node.kwargs["input"]
        if mean is None or var is None or not isinstance(source, fx.Node):
            continue
        name = f"zaq_bn_probe_{count}"
        model.add_submodule(name, BatchNormProbe(mean, var))
        with model.graph.inserting_before(node):
            probe = model.graph.call_module(name, (source,))
        node.replace_input_with(source, probe)
        count += 1
    if count:
        model.recompile()
    return count


def _attribute(model: nn.Module, path: str) -> Tensor:
    value = attribute_at(model, path)
    if not isinstance(value, Tensor):
        raise TypeError(f"{path} of the graph is no tensor but {type(value).__name__}.")
    return value


class ChannelMoments(torch.autograd.Function):
    """Variance (of the population) and mean of every channel, over batch and positions.

    One pass over memory each way on a processor; torch's own ``var_mean`` takes several times as
    long there, mostly for its gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, channels, ...) to two tensors (channels,)."""
        if x.is_cpu:
            mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        else:
            axes = [d for d in range(x.dim()) if d != 1]
            var, mean = torch.var_mean(x, dim=axes, correction=0)
        ctx.save_for_backward(x, mean)
        return var, mean

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_var: Tensor, to_mean: Tensor) -> Tensor:
        """``dvar/dx = 2 (x - mean) / n`` and ``dmean/dx = 1 / n``."""
        x, mean = ctx.saved_tensors
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1]
        slope = to_var * (2 / count)
        return torch.addcmul((to_mean / count - slope * mean).view(shape), x, slope.view(shape))


class BatchNormLoss:
    """Distance between a batch's statistics at every BatchNorm and the remembered ones.

    L_BN = (1/L) Σ_l [ mean_c (μ_l - μ̂_l)^2 + mean_c (σ_l - σ̂_l)^2 ], μ and σ over batch and
    positions, the hats are the model's. With ``relative`` both differences are divided by
    σ̂_l + eps, which makes layers of small and of large activations count alike.

    Use it around the forward pass: ``with loss.recording(): model(x)``, then ``loss.value()``.
    A model without BatchNorm has value 0 and ``len(loss) == 0``; that is logged once.

    Args:
        model: An eager model (BatchNorm modules) or a graph (`insert_probes` is called on it, which
            changes the graph but not the function).
        relative: See above.
    """

    def __init__(self, model: nn.Module, relative: bool = False) -> None:
        insert_probes(model)
        self.layers = batch_norms(model)
        self.relative = relative
        self._parts: list[Tensor] = []
        if not self.layers:
            logger.info(
                "%s has no BatchNorm: the BatchNorm-statistics terms fall away.",
                type(model).__name__,
            )

    def __len__(self) -> int:
        return len(self.layers)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Collect the statistics of the forward passes inside."""
        self._parts = []
        handles = [m.register_forward_pre_hook(self._observe) for m in self.layers.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _observe(self, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        var, mean = ChannelMoments.apply(x.float())
        expected_mean: Tensor = layer.running_mean.to(mean)
        expected_std = layer.running_var.to(mean).clamp(min=0).sqrt()
        std = (var + 1e-8).sqrt()
        mean_gap, std_gap = mean - expected_mean, std - expected_std
        if self.relative:
            mean_gap = mean_gap / (expected_std + 1e-3)
            std_gap = std_gap / (expected_std + 1e-3)
        self._parts.append(mean_gap.square().mean() + std_gap.square().mean())

    def value(self) -> Tensor:
        """The loss of what was recorded last; a scalar."""
        if not self._parts:
            return torch.zeros(())
        return torch.stack(self._parts).mean()
