"""Students whose quantizers are not where their layers are: a host's integration explains them.

An eager student carries its fake-quantizers inside its layers, a graph between its nodes. A host
that keeps them elsewhere and runs them only in the whole model's forward pass (NNCF does)
registers a `HostAdapter` when its integration is imported.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class HostAdapter(Protocol):
    """What has to be known of a host's students."""

    def recognises(self, model: nn.Module) -> bool:
        """Whether a student or its twin is this host's."""

    def place_of(self, model: nn.Module, quantizer: str) -> str:
        """Name of the weight behind a weight fake-quantizer, such as ``layer1.0.conv1.weight``."""

    def run(self, model: nn.Module, name: str, x: Tensor) -> Tensor:
        """Run one submodule by itself as the whole model would run it, quantizers included."""

    def quantizers_inside(self, model: nn.Module, name: str) -> list[nn.Module]:
        """Modules that hold the fake-quantizers of a submodule's operators."""


_ADAPTERS: list[HostAdapter] = []


def register_host(adapter: HostAdapter) -> None:
    """Let zero-shot fine-tuning know a host's students; the latest adapter is asked first."""
    if adapter not in _ADAPTERS:
        _ADAPTERS.insert(0, adapter)


class _Plain:
    """A student that carries its fake-quantizers inside its layers."""

    def recognises(self, model: nn.Module) -> bool:
        return True

    def place_of(self, model: nn.Module, quantizer: str) -> str:
        return quantizer

    def run(self, model: nn.Module, name: str, x: Tensor) -> Tensor:
        out: Tensor = model.get_submodule(name)(x)
        return out

    def quantizers_inside(self, model: nn.Module, name: str) -> list[nn.Module]:
        return []


_PLAIN = _Plain()


def host_of(model: nn.Module) -> HostAdapter:
    """The adapter of a student or twin."""
    return next((a for a in _ADAPTERS if a.recognises(model)), _PLAIN)
