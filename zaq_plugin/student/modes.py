"""Modes of a whole model: evaluation, frozen, quantized or float, and copies of its state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_plugin.student.fake_quantizers import set_switches

State = dict[str, Tensor]


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
    nodes = []
    if isinstance(model, fx.GraphModule):
        for node in model.graph.nodes:
            name = str(node.target)
            for operator, position in (("aten.batch_norm", 5), ("aten.dropout", 2)):
                if operator in name and len(node.args) > position and node.args[position] is True:
                    nodes.append((node, position))
    return nodes


def float_copy(model: nn.Module) -> nn.Module:
    """A deep copy with quantization and observers off, BatchNorm frozen, nothing to train.

    Every module has its counterpart in the model under the same name. Biases are the model's.
    """
    teacher = copy.deepcopy(model)
    for name in ("zaq_plan", "zaq_audit"):
        teacher.__dict__.pop(name, None)  # they speak of the student
    set_switches(teacher, observe=False, quantize=False)
    to_evaluation(teacher)
    freeze_batch_norm(teacher)
    changed = _training_nodes(teacher)
    for node, position in changed:
        node.update_arg(position, False)
    if changed and isinstance(teacher, fx.GraphModule):
        teacher.recompile()
    _disable_own_quantizers(teacher)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


def _disable_own_quantizers(model: nn.Module) -> None:
    for module in list(model.modules()):
        disable = getattr(module, "disable_quantization", None)
        if callable(disable):
            disable()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and evaluation mode; every module's own mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            to_evaluation(model)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients to the parameters, both put back afterwards.

    Gradients pass through the model, and it does not change.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    modes = {m: m.training for m in model.modules()}
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        to_evaluation(model)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


def copied_state(student: nn.Module) -> State:
    """Its ``state_dict``, which nothing that happens to the student changes."""
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def to_quantized_evaluation(student: nn.Module) -> None:
    """Observers off, fake-quantizers on, evaluation mode, in place."""
    set_switches(student, observe=False, quantize=True)
    to_evaluation(student)
