"""Outputs that lie on their input's grid: they take its range and do not add to it.

Pooling, reshaping and the like are followed by the very observer of their input. Ours average over
batches, and an observer that sees a tensor and then its mean would average the two: a range far
too small for the tensor. Such outputs lie within their input's range, so they need not be watched.

Before a ReLU6 it is the other way round: values outside its bounds are cut off in any case, so the
output is watched, and its grid, which saturates, serves the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import ObserverBase

from zaq_fx._compat import is_watcher
from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.student.fake_quantizers import is_fake_quantizer, range_observer


class Follower(nn.Module):
    """Stands for an observer or fake-quantizer elsewhere in the model, and never observes.

    Its state in a state dict is the leader's, as if the leader itself stood here.

    Args:
        leader: The observer or fake-quantizer of the tensor that came first.
    """

    def __init__(self, leader: nn.Module) -> None:
        super().__init__()
        self._leader = (leader,)  # in a tuple: it is no child of ours

    @property
    def leader(self) -> Any:
        """The observer or fake-quantizer whose grid this is."""
        return self._leader[0]

    @property
    def dtype(self) -> torch.dtype:
        """The leader's."""
        kind: torch.dtype = self.leader.dtype
        return kind

    @property
    def is_dynamic(self) -> bool:
        """The leader's."""
        return bool(self._told("is_dynamic"))

    @property
    def qscheme(self) -> Any:
        """The leader's."""
        return self.leader.qscheme

    @property
    def quant_min(self) -> int | None:
        """The leader's."""
        low: int | None = self._told("quant_min")
        return low

    @property
    def quant_max(self) -> int | None:
        """The leader's."""
        high: int | None = self._told("quant_max")
        return high

    def _told(self, name: str) -> Any:
        """What the leader says, if it says it: some of the host's observers do not."""
        return getattr(self.leader, name, None)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The leader's scale and zero point."""
        grid: tuple[Tensor, Tensor] = self.leader.calculate_qparams()
        return grid

    def forward(self, x: Tensor) -> Tensor:
        """The tensor, on the leader's grid if the leader fake-quantizes; same shape."""
        leader = self.leader
        if not is_fake_quantizer(leader):
            return x
        observing = bool(leader.observer_enabled[0])
        if not observing:
            out: Tensor = leader(x)
            return out
        observer = range_observer(leader)
        if observer is not None and not int(observer.num_batches):
            return x  # the leader stands behind, and has no range yet
        leader.disable_observer()
        try:
            out = leader(x)
        finally:
            leader.enable_observer()
        return out

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.leader.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing: the leader loads its own entries, and these are the same."""


ObserverBase.register(Follower)


def follow(prepared: fx.GraphModule) -> list[str]:
    """Put followers where an observer of averages stands a second time, in place; their names.

    Args:
        prepared: From prepare_fx or prepare_qat_fx. Doing it twice changes nothing more.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    groups: dict[nn.Module, list[fx.Node]] = {}
    for node in prepared.graph.nodes:
        if node.op == "call_module" and is_watcher(modules[str(node.target)]):
            groups.setdefault(modules[str(node.target)], []).append(node)
    names = []
    for watcher, nodes in groups.items():
        inner = range_observer(watcher)
        if inner is None:
            continue  # another package's
        saturated = len(nodes) > 1 and _is_saturated(nodes[0], nodes[1], modules)
        if isinstance(inner, MinMaxObserver) and not saturated:
            continue  # the range of all it saw: nothing is averaged
        leader = nodes[int(saturated)]
        for node in nodes:
            if node is not leader:
                prepared.set_submodule(str(node.target), Follower(watcher))
                names.append(str(node.target))
    return names


_SATURATING = (nn.ReLU6, nn.Hardtanh, nn.functional.relu6, nn.functional.hardtanh)


def _is_saturated(first: fx.Node, second: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a tensor is read by a saturating activation alone, whose output is watched second.

    What lies outside the activation's bounds is cut off behind, so no level is spent on it.
    """
    (activation,) = second.all_input_nodes
    kind: Any = activation.target
    if activation.op == "call_module":
        kind = type(modules[str(activation.target)])
    return kind in _SATURATING and list(first.users) == [activation]
