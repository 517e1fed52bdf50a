"""Every private name of torch.ao that this package leans on, in one place.

``tests/integrations/zaq_fx/test_host_facts.py`` pins each of them: it fails loudly, naming the
fact, when a new torch changes one.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch.ao.nn.intrinsic as nni
from torch import nn
from torch._ops import OpOverload
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.fx import GraphModule

HOST_WARNINGS = (
    ("torch.ao.quantization is deprecated", DeprecationWarning),
    (r"(?s).*are deprecated and will be removed in a future PyTorch release", UserWarning),
    (r"(?s).*reduce_range will be deprecated", UserWarning),
)
"""The host's announcements of its own end, as (message pattern, category)."""

LeafModule = nni._FusedModule
"""The base of modules that the host's tracer does not look into, whatever package they are from."""

_SLOW_PATH = "_enable_slow_path_for_better_numerical_stability"
_ATTRS = "_observed_graph_module_attrs"


def silence_host() -> None:
    """Ignore the host's deprecation notices (they say nothing that a user can act on)."""
    for message, category in HOST_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)


def is_watcher(module: nn.Module) -> bool:
    """Whether a module is an observer or a fake-quantizer."""
    return isinstance(module, ObserverBase | FakeQuantizeBase)


def qconfigs_of(prepared: GraphModule) -> dict[str, Any]:
    """The qconfig of every node of a prepared model, by node name.

    Raises:
        ValueError: the model was not prepared.
    """
    attributes = prepared.meta.get(_ATTRS) if isinstance(prepared, GraphModule) else None
    if attributes is None:
        raise ValueError(
            f"expected a model from prepare_fx or prepare_qat_fx; got {type(prepared).__name__} "
            "that was not prepared (or is already converted)."
        )
    return dict(attributes.node_name_to_qconfig)


def is_prepared(model: nn.Module) -> bool:
    """Whether a model came from prepare_fx or prepare_qat_fx and is not converted yet.

    PT2E leaves the same attribute on its graphs, which hold operators of aten where these hold
    modules and functions.
    """
    if not isinstance(model, GraphModule) or _ATTRS not in model.meta:
        return False
    return not any(isinstance(node.target, OpOverload) for node in model.graph.nodes)


def use_exact_batch_norm(module: nn.Module) -> None:
    """Let a QAT Conv-BN compute without dividing by gamma.

    The fast path divides the convolution's output by ``gamma / sqrt(var + eps)``: NaN for
    gamma = 0, which timm's residual blocks start with. The exact path needs a second convolution
    in training.
    """
    setattr(module, _SLOW_PATH, True)


# ---- One readable note in place of the host's wall of deprecation warnings -----------------------

NOTE = (
    "torch.ao's FX mode works in this version of torch but will be removed from a later one; "
    "zaq_pt2e does the same with torchao's PT2E. (Said once; the host's own deprecation warnings "
    "are hidden. Call zaq_fx.show_host_warnings() first to see them.)"
)


class HostNote(UserWarning):
    """What a user should know about the host; ignore it by this category."""


_state = {"said": False, "hide": True}


def show_host_warnings() -> None:
    """Leave the host's warnings alone, and say nothing ourselves. Call before anything else."""
    _state["hide"] = False


def note_host() -> None:
    """Say the note once a process and hide the host's warnings."""
    if not _state["hide"]:
        return
    silence_host()
    if not _state["said"]:
        _state["said"] = True
        warnings.warn(NOTE, HostNote, stacklevel=_depth())


def _depth() -> int:
    """How many frames up the caller outside this package is."""
    package, depth = __name__.rpartition(".")[0], 1
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(package):
        frame, depth = frame.f_back, depth + 1
    return depth - 1
