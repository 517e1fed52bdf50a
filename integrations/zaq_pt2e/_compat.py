"""Every private name and undocumented habit of torchao that this package leans on, in one place.

``tests/integrations/zaq_pt2e/test_host_facts.py`` pins each of them: it fails loudly, naming the
fact, when a new torchao changes one.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.ao.quantization.fx import _decomposed  # registers the quantized_decomposed operators
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

__all__ = [
    "ANNOTATION",
    "HOST_BN_EPS",
    "QUANTIZED_LIBRARY",
    "WRAPPERS",
    "is_watcher",
    "prepared_for_qat",
    "replace_fusion",
    "spare_folding",
]

QUANTIZED_LIBRARY = _decomposed.quantized_decomposed_lib

ANNOTATION: str = Q_ANNOTATION_KEY
"""Where a node's `QuantizationAnnotation` is kept in its meta."""

HOST_BN_EPS = 1e-5
"""The eps that the host's QAT patterns and its train/eval switch write into every BatchNorm."""

WRAPPERS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""Operators that call a part of a model under a switch, and how many arguments set the switch.
After those comes the part (a graph module), then its inputs."""

_FUSIONS = ("_fuse_conv_bn_", "_fuse_linear_bn_")
_ATTRS = "_observed_graph_module_attrs"


def is_watcher(module: object) -> bool:
    """Whether a module is an observer or a fake-quantizer of torchao, ours included."""
    return isinstance(module, ObserverBase | FakeQuantizeBase)


def prepared_for_qat(model: GraphModule) -> bool | None:
    """Whether a prepared model came from prepare_qat_pt2e; None if it is not a prepared one."""
    attributes = model.meta.get(_ATTRS)
    return None if attributes is None else bool(attributes.is_qat)


def replace_fusion(kind: type, fuse: Callable[[GraphModule], object]) -> None:
    """Let ``prepare_pt2e`` fuse BatchNorm by ``fuse`` where its quantizer is of a kind.

    The host fuses before it asks the quantizer anything, and folds whatever BatchNorm stands behind
    a convolution: also where others read the convolution's output, or several layers its weight.
    For all other quantizers nothing changes.

    Args:
        kind: Class of the quantizers concerned.
        fuse: Called with the model in place of the host's fusion, which is changed in place.
    """
    host = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    for name in _FUSIONS:
        setattr(host, name, _chosen(kind, fuse, getattr(host, name)))


def _chosen(
    kind: type, ours: Callable[[GraphModule], object], theirs: Callable[[GraphModule], object]
) -> Callable[[GraphModule], None]:
    @functools.wraps(theirs)
    def fuse(m: GraphModule) -> None:
        # The caller is prepare_pt2e(model, quantizer), which does not hand its quantizer on.
        quantizer = sys._getframe(1).f_locals.get("quantizer")
        (ours if isinstance(quantizer, kind) else theirs)(m)

    return fuse


def spare_folding(needless: Callable[[GraphModule], bool]) -> None:
    """Let ``convert_pt2e`` look for BatchNorm to fold only where there may be some.

    For one BatchNorm anywhere in the graph the host compares it with a hundred patterns, each of
    which it exports anew: minutes for a model of three layers.

    Args:
        needless: Says whether none of the host's patterns can be found in a graph.
    """
    host = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    theirs = host._fold_conv_bn_qat

    @functools.wraps(theirs)
    def fold(m: GraphModule) -> GraphModule:
        if not needless(m):
            folded: GraphModule = theirs(m)
            return folded
        m.graph.eliminate_dead_code()
        m.recompile()
        return m

    host._fold_conv_bn_qat = fold  # type: ignore[attr-defined]


def annotation_of(node: Node) -> Any:
    """The node's `QuantizationAnnotation`, or None."""
    return node.meta.get(ANNOTATION)


def constructor_class(constructor: Any) -> type | None:
    """The class behind the constructor of a `QuantizationSpec`, through ``with_args`` layers."""
    while not isinstance(constructor, type):
        inner = getattr(constructor, "p", None) or getattr(constructor, "func", None)
        inner = inner or getattr(constructor, "cls", None)
        if inner is None:
            return None
        constructor = inner
    return constructor


def is_fake_quantize(constructor: Any) -> bool:
    """Whether a constructor of a `QuantizationSpec` makes fake-quantizers (QAT), not observers."""
    cls = constructor_class(constructor)
    return cls is not None and issubclass(cls, FakeQuantizeBase)


def register_int8_kernels() -> None:
    """Tell Inductor the patterns of its int8 kernels on x86.

    torchao does so when its X86 quantizer is imported. Without it ``lower_pt2e_quantized_to_x86``
    and ``torch.compile`` run quantized models in float, and say nothing.
    """
    importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")


def lowered_name(target: object) -> str | None:
    """Short name of an int8 kernel in a lowered model, such as ``onednn.qconv_pointwise``."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "onednn":
        return None
    name = target._schema.name.removeprefix("onednn::")
    if not name.startswith(("qconv", "qlinear")) or "prepack" in name:
        return None
    overload = "" if target._overloadname == "default" else f".{target._overloadname}"
    return f"onednn.{name}{overload}"
