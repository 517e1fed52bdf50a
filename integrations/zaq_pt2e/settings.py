"""Which layer gets which formats: a default, overrides by name, pattern or type, and filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from zaq_plugin.fake_quantize import (
    ActivationFakeQuantize,
    PWLQActivationFakeQuantize,
    PWLQPerChannelFakeQuantize,
)
from zaq_plugin.observers import TopKMedianObserver
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_pt2e.graph import class_named

Activations = int | PWLQSpec | None
"""Bits of a uniform grid; a `PWLQSpec` (simulated); None for float activations (weight-only)."""

Override = QuantSpec | tuple[QuantSpec, Activations] | None
"""A weight format, a pair (weight format, activations), or None: leave the layer float."""

SOLVE_EVERY = 64
"""Training steps between two searches for breakpoints, as long as observers are on."""

Formats = tuple[QuantSpec, Activations]


def check_weights(spec: object, where: str) -> QuantSpec:
    """The spec, if it is one.

    Raises:
        TypeError: it is none.
    """
    if isinstance(spec, PWLQSpec | UniformSpec):
        return spec
    raise TypeError(f"{where}: expected a PWLQSpec or a UniformSpec; got {spec!r}.")


def check_activations(activations: object, where: str) -> Activations:
    """The activations, if they are a number of bits, a `PWLQSpec` or None.

    Raises:
        TypeError, ValueError: they are something else, or a width that does not exist.
    """
    if activations is None or isinstance(activations, PWLQSpec):
        return activations
    if isinstance(activations, bool) or not isinstance(activations, int):
        raise TypeError(
            f"{where}: activations must be a number of bits (2 to 8), a PWLQSpec (simulated), or "
            f"None (float activations); got {activations!r}."
        )
    if not 2 <= activations <= 8:
        raise ValueError(f"{where}: activations must have 2 to 8 bits; got {activations}.")
    return activations


class Settings:
    """Resolves a layer's formats, and remembers which overrides and patterns were of use.

    Args:
        default: The formats of layers that nothing else matches.
        overrides: See `PWLQQuantizer`.
        include: Patterns; if any are given, other layers stay float.
        exclude: Patterns of layers that stay float.
    """

    def __init__(
        self,
        default: Formats,
        overrides: Mapping[Any, Override] | None = None,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
    ) -> None:
        self.default = default
        self.names: dict[str, Formats | None] = {}
        self.types: dict[type, Formats | None] = {}
        for key, value in (overrides or {}).items():
            self._add(key, value)
        self.include, self.exclude = _patterns(include, "include"), _patterns(exclude, "exclude")
        self.used: set[Any] = set()

    def _add(self, key: Any, value: Override) -> None:
        where = f"overrides[{key!r}]"
        formats: Formats | None
        if value is None:
            formats = None
        elif isinstance(value, tuple):
            if len(value) != 2:
                raise TypeError(f"{where}: expected (weight format, activations); got {value!r}.")
            formats = (check_weights(value[0], where), check_activations(value[1], where))
        else:
            formats = (check_weights(value, where), self.default[1])
        if isinstance(key, str):
            self.names[key] = formats
        elif isinstance(key, type) and issubclass(key, nn.Module):
            self.types[key] = formats
        else:
            raise TypeError(
                f"overrides: a key is a module's name, a pattern or a module class; got {key!r}."
            )

    def formats(
        self, name: str, modules: tuple[tuple[str, str], ...]
    ) -> tuple[Formats | None, str | None]:
        """The formats of a layer, or None and the reason why it stays float.

        An exact name wins over patterns and outer modules' names, these over types.
        """
        for pattern in self.exclude:
            if matches(pattern, name):
                self.used.add(pattern)
                return None, f"excluded by '{pattern}'"
        if self.include:
            found = [p for p in self.include if matches(p, name)]
            if not found:
                return None, "no include pattern matches it"
            self.used.update(found)
        types = self._types(modules)
        self.used.update(types)
        for key in sorted((k for k in self.names if matches(k, name)), key=lambda k: k != name):
            self.used.add(key)
            return self.names[key], f"override '{key}' is None"
        for cls in types:
            return self.types[cls], f"override {cls.__name__} is None"
        return self.default, None

    def _types(self, modules: tuple[tuple[str, str], ...]) -> list[type]:
        """The overrides' classes that fit a layer's modules, the innermost module's first."""
        around = [class_named(name) for _, name in reversed(modules)]
        return [key for cls in around if cls for key in self.types if issubclass(cls, key)]

    def require_used(self, names: list[str]) -> None:
        """Raise ValueError if an override or pattern matched no layer at all."""
        wanted = [*self.names, *self.types, *self.include, *self.exclude]
        idle = [k for k in wanted if k not in self.used]
        # A name may be hidden behind a filter that came first.
        idle = [k for k in idle if not (isinstance(k, str) and any(matches(k, n) for n in names))]
        if idle:
            shown = ", ".join(getattr(k, "__name__", repr(k)) for k in idle)
            raise ValueError(
                f"no layer matches {shown}. The model's layers are: {', '.join(names[:20])}"
                f"{' ...' if len(names) > 20 else ''}."
            )


def _patterns(given: Iterable[str], where: str) -> tuple[str, ...]:
    if isinstance(given, str):
        raise TypeError(f"{where} must be a list of patterns; got the text {given!r}.")
    return tuple(given)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a layer: exactly, as a module around it, or by * ? []."""
    return name == pattern or name.startswith(pattern + ".") or fnmatchcase(name, pattern)


def weight_factory(spec: QuantSpec, qat: bool, learnable: bool = False) -> Any:
    """Constructor of the weight's module, in the host's sense."""
    if qat:
        return PWLQPerChannelFakeQuantize.with_args(
            spec=spec, learnable=learnable, solve_every=SOLVE_EVERY
        )
    # Calibration changes no weight: `zaq_pt2e.calibrate` switches quantization on.
    return PWLQPerChannelFakeQuantize.with_args(spec=spec, fake_quant=False, observe=False)


def weight_qspec(spec: QuantSpec, ch_axis: int, qat: bool, learnable: bool) -> QuantizationSpec:
    """The host's word for a weight with this format."""
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=weight_factory(spec, qat, learnable),
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=ch_axis,
    )


def activation_qspec(
    activations: int | PWLQSpec,
    qat: bool,
    observer: Callable[..., Any] = TopKMedianObserver,
    learnable: bool = False,
) -> QuantizationSpec:
    """The host's word for an activation with this width.

    Edges of one tensor share a module if their words agree, so that PWLQ ones are given another
    integer type than uniform ones.
    """
    factory: Any = observer
    if isinstance(activations, PWLQSpec):
        factory = PWLQActivationFakeQuantize.with_args(
            spec=activations, observer=observer, fake_quant=qat
        )
        dtype, low, high = torch.int8, -(2 ** (activations.bits - 1)), 2 ** (activations.bits - 1)
        return QuantizationSpec(
            dtype=dtype,
            observer_or_fake_quant_ctr=factory,
            quant_min=low,
            quant_max=high - 1,
            qscheme=torch.per_tensor_affine,
        )
    factory = ActivationFakeQuantize.with_args(
        observer=observer, learnable=learnable, fake_quant=qat
    )
    return QuantizationSpec(
        dtype=torch.uint8,
        observer_or_fake_quant_ctr=factory,
        quant_min=0,
        quant_max=2**activations - 1,
        qscheme=torch.per_tensor_affine,
    )
