"""Which weight gets which format: a default, and overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.student.assign import Classes, Overrides, classes_at, label

Override = QuantSpec | None
"""A weight format, or None: the layer is left to NNCF's own int8."""


class Settings:
    """Resolves a weight's format by the name of its layer.

    Args:
        spec: The format of layers that no override matches; ``PWLQSpec()`` if None.
        overrides: ``{key: format or None}``; `zaq_plugin.student.assign` says what keys there are,
            and which one wins.
        learnable: Train the activations' steps, too.
        classes: The classes of the model's modules, see `module_classes`; None if the model is not
            known yet, and there can be no overrides by class.

    Raises:
        TypeError: a format that is none, or a key or value of another kind.
        ValueError: an override by class of a model that is not known.
    """

    def __init__(
        self,
        spec: QuantSpec | None = None,
        overrides: Mapping[Any, Override] | None = None,
        learnable: bool = False,
        classes: Mapping[str, Classes] | None = None,
    ) -> None:
        self.spec = _checked(PWLQSpec() if spec is None else spec, "spec")
        self.learnable = learnable
        self.classes = classes or {}
        for key, value in overrides.items() if isinstance(overrides, Mapping) else ():
            _check_value(value, f"overrides[{label(key)}]")
        self.overrides = Overrides(overrides, None)
        for key in self.overrides.choices:
            if classes is None and isinstance(key, type):
                raise ValueError(
                    f"overrides[{label(key)}]: overrides by module class need the model, which "
                    "register() does not see. Use zaq_nncf.quantize, or name the layers."
                )

    def format_of(self, layer: str) -> Override:
        """The layer's format; None leaves it to NNCF's own int8."""
        choice = self.overrides.find(layer, self._classes(layer), _aliases(layer))
        return self.spec if choice is None else choice.weights

    def require_used(self, layers: Iterable[str]) -> None:
        """Raise ValueError if an override matches no layer."""
        classes = {name: self._classes(name) for name in layers}
        others = {alias: classes[name] for name in classes for alias in _aliases(name)}
        self.overrides.require_used(classes, others)

    def _classes(self, layer: str) -> Classes:
        return classes_at(layer, self.classes)


def _aliases(layer: str) -> list[str]:
    """Without the root that `prepare_model` puts around some models."""
    return [layer.removeprefix("model.")] if layer.startswith("model.") else []


def _check_value(value: object, where: str) -> None:
    if isinstance(value, tuple):
        raise TypeError(
            f"{where}: expected a format such as a PWLQSpec, or None for NNCF's own int8; got the "
            f"pair {value!r}. NNCF places activations' quantizers itself; their width is the "
            "argument activations, one for all layers."
        )
    if value is not None:
        _checked(value, where)


def layer_name(weight: str) -> str:
    """The name of a layer from that of its weight: without a last part that says only 'weight'."""
    return weight.removesuffix(".weight")


def _checked(spec: object, where: str) -> QuantSpec:
    if isinstance(spec, QuantSpec):
        return spec
    raise TypeError(f"{where}: expected a format such as a PWLQSpec; got {spec!r}.")


def check_bits(bits: object) -> int:
    """The width of activations, if it is one.

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"activations must be a number of bits, 2 to 8; got {bits!r}.")
    if not 2 <= bits <= 8:
        raise ValueError(f"activations must have 2 to 8 bits; got {bits}.")
    return bits
