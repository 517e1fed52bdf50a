"""The float teacher of a prepared model."""

from __future__ import annotations

import copy
import types

import torch
from torch import nn
from torch.fx import GraphModule

from zaq_pt2e._compat import is_watcher
from zaq_pt2e.batch_norm import set_training
from zaq_pt2e.bias import InputMean, restore_biases


def twin(prepared: GraphModule) -> GraphModule:
    """A float copy of a prepared model: it computes what the model computed before.

    A deep copy in evaluation mode, whose fake-quantizers and observers are off, whose biases are
    uncorrected and whose parameters need no gradient. Every node and module has the name that it
    has in the prepared model, so that a tap in one is a tap in the other.

    Args:
        prepared: From ``prepare_pt2e`` or ``prepare_qat_pt2e``, calibrated, trained or neither.
            It is not changed.

    Raises:
        ValueError: the model holds neither observers nor fake-quantizers.
    """
    if not any(is_watcher(module) for module in prepared.modules()):
        raise ValueError(
            "twin: expected a model from prepare_pt2e or prepare_qat_pt2e; this one holds neither "
            "observers nor fake-quantizers. Take the twin before convert_pt2e."
        )
    teacher = copy.deepcopy(prepared)
    inside = ""  # of a fake-quantizer, whose own observer stays with it
    for name, module in list(teacher.named_modules(remove_duplicate=False)):
        if not is_watcher(module) or (inside and name.startswith(inside)):
            continue
        inside = name + "."
        if isinstance(module, InputMean) or not hasattr(module, "disable_fake_quant"):
            teacher.set_submodule(name, nn.Identity())
        else:
            module.disable_fake_quant()
            module.disable_observer()
    restore_biases(teacher)
    set_training(teacher, False)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    # It stays in evaluation mode whatever a training loop calls.
    teacher.train = types.MethodType(_stay, teacher)  # type: ignore[method-assign]
    teacher.eval = types.MethodType(_stay, teacher)  # type: ignore[method-assign]
    return teacher


def _stay(self: GraphModule, mode: bool = False) -> GraphModule:
    return self


@torch.no_grad()
def freeze_ranges(prepared: nn.Module) -> None:
    """Stop every fake-quantizer's observer: ranges and breakpoints stay as calibrated.

    What training at length wants: solving for breakpoints anew at each step is slow.

    Raises:
        ValueError: the model holds no fake-quantizer.
    """
    found = [m for m in prepared.modules() if is_watcher(m) and hasattr(m, "disable_observer")]
    if not found:
        raise ValueError(
            "freeze_ranges: the model holds no fake-quantizer. Prepare it with prepare_qat_pt2e "
            "and PWLQQuantizer(..., qat=True)."
        )
    for module in found:
        module.disable_observer()  # type: ignore[operator]
