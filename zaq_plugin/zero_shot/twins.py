"""The teacher as the student's twin: modes, biases and switches of a whole model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_plugin.zero_shot.quantizers import set_switches

BIAS_SHIFT = "zaq_bias_shift"
"""Buffer that `zaq_plugin.ptq` leaves on a layer whose bias it corrected."""


def freeze_batch_norm(model: nn.Module) -> None:
    """BatchNorms use and keep their running statistics (weights and biases still train)."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        freeze: Any = getattr(module, "freeze_bn_stats", None)
        if callable(freeze):
            freeze()


def to_evaluation(model: nn.Module) -> None:
    """Evaluation mode; for exported graphs, whose mode is in the graph, see `check_graph_mode`."""
    if isinstance(model, fx.GraphModule):
        model.training = False
        for child in model.children():
            child.eval()
        return
    model.eval()


def check_graph_mode(model: nn.Module) -> None:
    """Refuse a graph whose BatchNorm or dropout operators are in training mode.

    Raises:
        ValueError: with the way out.
    """
    if _training_nodes(model):
        raise ValueError(
            "the student's graph has BatchNorm or dropout in training mode; call "
            "torchao.quantization.pt2e.move_exported_model_to_eval(student) first."
        )


def _training_nodes(model: nn.Module) -> list[tuple[fx.Node, int]]:
    found = []
    if isinstance(model, fx.GraphModule):
        for node in model.graph.nodes:
            name = str(node.target)
            for operator, position in (("aten.batch_norm", 5), ("aten.dropout", 2)):
                if operator in name and len(node.args) > position and node.args[position] is True:
                    found.append((node, position))
    return found


def twin(student: nn.Module) -> nn.Module:
    """The teacher P: the student's deep copy, quantization and observers off, BatchNorm frozen.

    It computes the float model's function as long as nothing has moved the student's float weights,
    and every module has its counterpart in the student under the same name.
    """
    teacher = copy.deepcopy(student)
    set_switches(teacher, observe=False, quantize=False)
    to_evaluation(teacher)
    freeze_batch_norm(teacher)
    changed = _training_nodes(teacher)
    for node, position in changed:
        node.update_arg(position, False)
    if changed and isinstance(teacher, fx.GraphModule):
        teacher.recompile()
    _disable_own_quantizers(teacher)
    restore_biases(teacher)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


def _disable_own_quantizers(model: nn.Module) -> None:
    for module in list(model.modules()):
        disable = getattr(module, "disable_quantization", None)
        if callable(disable):
            disable()


@torch.no_grad()
def restore_biases(model: nn.Module) -> None:
    """Give back what bias correction took out, in place.

    It is kept on the layer itself, as `zaq_plugin.ptq` leaves it, or, where a host may add nothing
    to layers, on the weight's quantizer, as ``bias_shift`` with the parameter's name in ``bias``.
    """
    for module in list(model.modules()):
        kept = getattr(module, "bias_shift", None)
        if isinstance(kept, Tensor) and kept.numel():
            corrected = model.get_parameter(str(module.bias))
            corrected.add_(kept.to(corrected))
            kept.zero_()
        shift = getattr(module, BIAS_SHIFT, None)
        if isinstance(shift, Tensor):
            bias: Any = module.bias
            bias.add_(shift.to(bias.dtype))
            shift.zero_()
