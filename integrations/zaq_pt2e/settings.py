"""Which layer gets which formats: a default, overrides by name, pattern or type, and filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from zaq_plugin.fake_quantize import (
    ActivationFakeQuantize,
    PWLQActivationFakeQuantize,
    PWLQPerChannelFakeQuantize,
)
from zaq_plugin.observers import TopKMedianObserver
from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.pwlq.base import is_simulated
from zaq_plugin.student import assign
from zaq_plugin.student.assign import Override, Overrides, label, matches, unmatched
from zaq_pt2e.graph import class_named

Activations = int | PWLQSpec | None
"""Bits of a uniform grid; a `PWLQSpec` (simulated); None for float activations (weight-only)."""

ModuleStack = tuple[tuple[str, str], ...]
"""(path, qualified class name) of the modules around a layer, from the outside in."""

SOLVE_EVERY = 64
"""Training steps between two searches for breakpoints, as long as observers are on."""

Formats = tuple[QuantSpec, Activations]


def check_weights(spec: object, where: str) -> QuantSpec:
    """The spec, if it is one.

    Raises:
        TypeError: it is none.
    """
    if isinstance(spec, QuantSpec):
        return spec
    raise TypeError(f"{where}: expected a format such as a PWLQSpec; got {spec!r}.")


def check_activations(activations: object, where: str) -> Activations:
    """The activations, if they are a number of bits, a `PWLQSpec` or None.

    Raises:
        TypeError, ValueError: they are something else, or a width that does not exist.
    """
    if isinstance(activations, QuantSpec) and activations.activations == "affine":
        raise TypeError(
            f"{where}: activations must be a number of bits (2 to 8), a PWLQSpec (simulated), or "
            f"None (float activations); got {activations!r}. Give a uniform grid by its bits."
        )
    assign.check_activations(activations, where)
    return _ours(activations)


class Settings:
    """Resolves a layer's formats: filters first, then `zaq_plugin.student.assign.Overrides`.

    Args:
        default: The formats of layers that nothing else matches.
        overrides: See `PWLQQuantizer`.
        include: Patterns; if any are given, other layers stay float.
        exclude: Patterns of layers that stay float.

    Raises:
        TypeError, ValueError: as in `Overrides`; activations that this host has not.
    """

    def __init__(
        self,
        default: Formats,
        overrides: Mapping[Any, Override] | None = None,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
    ) -> None:
        self.default = default
        self.overrides = Overrides(overrides, default[1])
        for key, choice in self.overrides.choices.items():
            check_activations(choice.activations, f"overrides[{label(key)}]")
        self.include, self.exclude = _patterns(include, "include"), _patterns(exclude, "exclude")

    def formats(self, name: str, modules: ModuleStack) -> tuple[Formats | None, str | None]:
        """The formats of a layer, or None and the reason why it stays float."""
        for pattern in self.exclude:
            if matches(pattern, name):
                return None, f"excluded by '{pattern}'"
        if self.include and not any(matches(p, name) for p in self.include):
            return None, "no include pattern matches it"
        choice = self.overrides.find(name, self._classes(modules))
        if choice is None:
            return self.default, None
        if choice.weights is None:
            return None, choice.reason
        return (choice.weights, _ours(choice.activations)), None

    def _classes(self, modules: ModuleStack) -> list[type]:
        """The classes of a layer's modules, the innermost one's first."""
        # Classes that a function defines cannot be looked up by their name.
        keys = [key for key in self.overrides.choices if isinstance(key, type)]
        by_name = {f"{key.__module__}.{key.__qualname__}": key for key in keys}
        classes = [by_name.get(name) or class_named(name) for _, name in reversed(modules)]
        return [cls for cls in classes if cls is not None]

    def require_used(self, layers: Mapping[str, ModuleStack]) -> None:
        """Check that every override and pattern matches a layer, be it that another one wins.

        Args:
            layers: The modules around each layer, by the layer's name.

        Raises:
            ValueError: one matches no layer at all.
        """
        classes = {name: self._classes(modules) for name, modules in layers.items()}
        self.overrides.require_used(classes)
        for where, patterns in (("include", self.include), ("exclude", self.exclude)):
            idle = [p for p in patterns if not any(matches(p, name) for name in classes)]
            if idle:
                raise unmatched(where, idle, classes)


def _ours(activations: object) -> Activations:
    """Activations that were checked, as this host's type."""
    return activations if isinstance(activations, int) or is_simulated(activations) else None


def _patterns(patterns: Iterable[str], where: str) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise TypeError(f"{where} must be a list of patterns; got the text {patterns!r}.")
    return tuple(patterns)


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
    if isinstance(activations, QuantSpec):
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
