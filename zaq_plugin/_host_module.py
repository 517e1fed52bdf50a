"""What torch.ao and torchao expect of an observer or a fake-quantizer, without importing either.

Both hosts build these modules from factories (``Cls.with_args(...)``), read a handful of plain
attributes (``dtype``, ``qscheme``, ``quant_min``, ``quant_max``, ``ch_axis``, ``eps``,
``is_dynamic``) and ask ``calculate_qparams()`` for the grid. Each integration registers these
classes as virtual subclasses of its host's abstract bases.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

FLOAT32_EPS = torch.finfo(torch.float32).eps

_P = ParamSpec("_P")
_R = TypeVar("_R")


def outside_graphs(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keeps torch.compile out of a function, as ``torch.compiler.disable`` does, but lazily.

    ``torch.compiler.disable`` imports the whole compiler when a class is defined, which takes as
    long as importing torch; here that waits until something else has imported it.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if "torch._dynamo" in sys.modules:
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


class ModuleFactory:
    """A module class with keyword arguments: what ``with_args`` returns and a qconfig holds.

    Factories compare equal if class and (early) arguments do, so that hosts can
    share observers.
    """

    def __init__(
        self,
        cls: type[nn.Module],
        kwargs: dict[str, Any],
        late: dict[str, Callable[[], Any]] | None = None,
    ) -> None:
        self.cls = cls
        self.kwargs = kwargs
        self.late = late or {}
        self.__name__ = cls.__name__  # torchao looks for "PerChannel" in it

    def __call__(self, **kwargs: Any) -> nn.Module:
        """Build the module; arguments given here win."""
        late = {name: make() for name, make in self.late.items() if name not in kwargs}
        return self.cls(**{**copy.deepcopy(self.kwargs), **late, **kwargs})

    def with_args(self, **kwargs: Any) -> ModuleFactory:
        """A factory with more arguments; those given here win."""
        return ModuleFactory(self.cls, {**self.kwargs, **kwargs}, self.late)

    def with_callable_args(self, **kwargs: Callable[[], Any]) -> ModuleFactory:
        """A factory with arguments computed when the module is built, such as its device."""
        return ModuleFactory(self.cls, self.kwargs, {**self.late, **kwargs})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModuleFactory):
            return NotImplemented
        return self.cls is other.cls and self.kwargs == other.kwargs

    def __hash__(self) -> int:
        return hash((self.cls, tuple(sorted(self.kwargs))))

    def __repr__(self) -> str:
        listed = ", ".join(f"{k}={v!r}" for k, v in self.kwargs.items())
        return f"{self.cls.__name__}.with_args({listed})"


class HostModule(nn.Module):
    """Base of all observers and fake-quantizers.

    Attributes:
        resizable: names of buffers and parameters whose shape is known only once data was seen; a
            state dict is loaded into them whatever shape they have.
        optional: those of them that a state dict may lack, as files of earlier versions do; they
            are empty then.
    """

    resizable: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @classmethod
    def with_args(cls, **kwargs: Any) -> Any:
        """A factory that calls the class with these arguments; factories can be chained."""
        return ModuleFactory(cls, kwargs)

    @classmethod
    def with_callable_args(cls, **kwargs: Callable[[], Any]) -> Any:
        """A factory with arguments computed when the module is built."""
        return ModuleFactory(cls, {}, kwargs)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the grid, as the host's quantize operators take them."""
        raise NotImplementedError

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in self.resizable:
            mine = getattr(self, name, None)
            if name in self.optional and isinstance(mine, Tensor):
                state_dict.setdefault(prefix + name, mine.new_empty(0))
            saved = state_dict.get(prefix + name)
            if not isinstance(saved, Tensor) or not isinstance(mine, Tensor):
                continue
            if mine.shape != saved.shape:
                mine.data = torch.empty(saved.shape, dtype=mine.dtype, device=mine.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FakeQuantizeModule(HostModule):
    """Base of the fake-quantizers: two switches, kept in buffers so that they travel.

    ``observer_enabled``: ranges follow the data. ``fake_quant_enabled``: the output is quantized.
    Both are uint8 of shape (1,), as in the hosts, and both start at 1.
    """

    observer_enabled: Tensor
    fake_quant_enabled: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("observer_enabled", torch.ones(1, dtype=torch.uint8))
        self.register_buffer("fake_quant_enabled", torch.ones(1, dtype=torch.uint8))
        self._switches = (True, True)

    def enable_observer(self, enabled: bool = True) -> None:
        """Let the ranges follow the data."""
        self.observer_enabled[0] = 1 if enabled else 0
        self._remember_switches()

    def disable_observer(self) -> None:
        """Freeze the ranges."""
        self.enable_observer(False)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Quantize the output."""
        self.fake_quant_enabled[0] = 1 if enabled else 0
        self._remember_switches()

    def disable_fake_quant(self) -> None:
        """Pass values through unchanged."""
        self.enable_fake_quant(False)

    def switches(self) -> tuple[bool, bool]:
        """(observing, quantizing), read from the buffers; under torch.compile from their copy.

        Reading a buffer's value would break a compiled graph, so the methods above and
        ``load_state_dict`` keep a copy. Whoever writes into the buffers by hand and then compiles
        must call one of the methods.
        """
        if not torch.compiler.is_compiling():
            self._remember_switches()
        return self._switches

    def _remember_switches(self) -> None:
        seen = (bool(self.observer_enabled[0]), bool(self.fake_quant_enabled[0]))
        if seen != self._switches:
            self._switches = seen

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._remember_switches()


def refuse_dynamic(owner: nn.Module, is_dynamic: bool) -> None:
    """Raise ValueError for dynamic quantization, which these modules do not do."""
    if is_dynamic:
        raise ValueError(
            f"{type(owner).__name__} holds static ranges; got is_dynamic=True. Use the host's own "
            "observer for dynamically quantized activations."
        )
