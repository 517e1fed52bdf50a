"""The float teacher of a prepared student."""

from __future__ import annotations

import copy

from torch import fx, nn

from zaq_fx._compat import is_prepared, is_watcher


def twin(prepared: fx.GraphModule) -> fx.GraphModule:
    """A deep copy of a prepared model that computes the float function.

    Observers and fake-quantizers do nothing, BatchNorm is frozen, no parameter needs a gradient.
    Every module and node keeps its name, so a tap in one is the same tap in the other.

    Raises:
        ValueError: the model was not prepared.
    """
    if not is_prepared(prepared):
        raise ValueError(
            f"twin expects a model from prepare_fx or prepare_qat_fx; got {type(prepared).__name__}"
            " that was not prepared (or is already converted)."
        )
    teacher = copy.deepcopy(prepared)
    for name, module in list(teacher.named_modules(remove_duplicate=False)):
        if not is_watcher(module):
            continue
        if hasattr(module, "fake_quant_enabled"):
            module.disable_observer()
            module.disable_fake_quant()
        elif name:
            owner, _, leaf = name.rpartition(".")
            if not hasattr(teacher.get_submodule(owner), "fake_quant_enabled"):
                setattr(teacher.get_submodule(owner), leaf, nn.Identity())
    teacher.eval()
    teacher.requires_grad_(False)
    return teacher
