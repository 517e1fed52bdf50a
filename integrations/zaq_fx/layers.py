"""The graph of a model, and its weighted layers: where they are, their weights and formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.nn.intrinsic as nni
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from zaq_fx._compat import is_watcher, qconfigs_of
from zaq_fx.kept import KeptFloat
from zaq_plugin.layers import LAYERS
from zaq_plugin.observers import PWLQPerChannelObserver
from zaq_plugin.pwlq import PWLQTensor, QuantSpec, quantize
from zaq_plugin.student.fake_quantizers import carried_quantizer, is_fake_quantizer, observer_of
from zaq_plugin.weight_observer import solve_once

# ---- The graph of a float model ------------------------------------------------------------------


class Tracer(fx.Tracer):
    """torch.fx's tracer; parameters stay attributes of the modules that own them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """As torch.fx; a layer that is kept float is a leaf, too."""
        return isinstance(m, KeptFloat) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The model as a GraphModule that shares its modules; a GraphModule is returned as it is.

    Raises:
        ValueError: the model cannot be traced.
    """
    if isinstance(model, fx.GraphModule):
        return model
    try:
        graph = Tracer().trace(model)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({error}). FX quantization needs a "
            "traceable model; zaq_pt2e takes models with control flow."
        ) from error
    return fx.GraphModule(model, graph, type(model).__name__)


def exists(root: nn.Module, path: str) -> bool:
    """Whether a module has a submodule of this name."""
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def free_name(root: nn.Module, stem: str) -> str:
    """The stem, or the stem with the first number that makes it a new submodule's name."""
    name, number = stem, 0
    while exists(root, name) or hasattr(root, name):
        number += 1
        name = f"{stem}_{number}"
    return name


# ---- The weighted layers of a prepared model -----------------------------------------------------

WEIGHTED = LAYERS


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a prepared model.

    Attributes:
        name: Its name in the model.
        node: The node that calls it (the first one, if there are several).
        module: The module called: float (maybe fused with its ReLU), or in training clothes.
        root: The float layer inside: for a QAT layer, BatchNorm folded, a fresh copy.
        spec: The weight's format, or None if the host will not quantize it with ours.
        qconfig: The host's setting for it; None if it stays float.
    """

    name: str
    node: fx.Node
    module: nn.Module
    root: nn.Module
    spec: QuantSpec | None
    qconfig: Any

    @property
    def kind(self) -> str:
        """The float layer's type."""
        return next(c.__name__ for c in WEIGHTED if isinstance(self.root, c))

    @property
    def watcher(self) -> Any:
        """The weight's fake-quantizer in training, else a new observer; None if not ours."""
        if self.spec is None:
            return None
        watcher = carried_quantizer(self.module)
        return watcher if watcher is not None else self.qconfig.weight()

    def quantized(self) -> PWLQTensor:
        """The weight on its levels, as conversion will have it.

        Raises:
            ValueError: the weight is not quantized by this package.
        """
        watcher = self.watcher
        if watcher is None or self.spec is None:
            raise ValueError(f"layer '{self.name}' is not quantized by this package.")
        weight: Tensor = self.root.weight.detach()  # type: ignore[operator]
        watcher = watcher.to(weight.device)
        observer = observer_of(watcher)
        frozen = is_fake_quantizer(watcher) and not bool(watcher.observer_enabled[0])
        if frozen and observer.edges.numel():
            edges = watcher.edges.detach()
        else:
            edges = solve_once(weight, self.spec, watcher.ch_axis)
        return quantize(weight, self.spec, watcher.ch_axis, edges=edges)


class NothingDrawn(TorchFunctionMode):
    """Inside ``with``, layers are built without drawing the weights that replace nothing.

    What the host builds from a layer gets that layer's weight at once; drawing another before took
    a sixth of a conversion, and numbers of torch's global stream.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call everything but what fills a tensor with random numbers in a layer's constructor."""
        kwargs = kwargs or {}
        if func in (nn.init.kaiming_uniform_, nn.init.uniform_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def root_of(module: nn.Module) -> nn.Module | None:
    """The float convolution or linear layer in a module of a prepared model, or None."""
    if carried_quantizer(module) is not None:
        was_training = module.training
        with NothingDrawn():
            module = module.to_float()  # type: ignore[operator]
        module.train(was_training)
    return _inside(module)


def has_root(module: nn.Module) -> bool:
    """Whether there is one; nothing is built."""
    return carried_quantizer(module) is not None or _inside(module) is not None


def _inside(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nni._FusedModule) and len(module) and isinstance(module[0], WEIGHTED):
        return module[0]
    return module if isinstance(module, WEIGHTED) else None


def layers_of(prepared: fx.GraphModule) -> Iterator[Layer]:
    """All convolutions and linear layers that a prepared model calls, in order of execution.

    Raises:
        ValueError: the model was not prepared.
    """
    qconfigs = qconfigs_of(prepared)
    modules = dict(prepared.named_modules(remove_duplicate=False))
    seen = set()
    for node in prepared.graph.nodes:
        if node.op != "call_module" or str(node.target) in seen:
            continue
        module = modules[str(node.target)]
        root = root_of(module)
        if root is None:
            continue
        seen.add(str(node.target))
        qconfig = qconfigs.get(node.name)
        yield Layer(str(node.target), node, module, root, _spec_of(module, qconfig), qconfig)


def _spec_of(module: nn.Module, qconfig: Any) -> QuantSpec | None:
    watcher = carried_quantizer(module)
    if watcher is None and qconfig is not None and isinstance(module, nn.Module):
        watcher = qconfig.weight()
    watcher = observer_of(watcher)
    return watcher.spec if isinstance(watcher, PWLQPerChannelObserver) else None


def input_watcher(prepared: fx.GraphModule, layer: Layer) -> nn.Module | None:
    """The observer or fake-quantizer of a layer's input, looking through shared-range operators."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    node: Any = layer.node.args[0] if layer.node.args else None
    for _ in range(len(prepared.graph.nodes)):
        if not isinstance(node, fx.Node):
            return None
        if node.op == "call_module" and is_watcher(modules[str(node.target)]):
            return modules[str(node.target)]
        if node.op == "placeholder" or not node.args:
            return None
        node = node.args[0]
    return None


def engine() -> str:
    """The quantized engine in use."""
    return str(torch.backends.quantized.engine)


__all__ = [
    "WEIGHTED",
    "Layer",
    "NothingDrawn",
    "engine",
    "has_root",
    "input_watcher",
    "layers_of",
    "root_of",
]
