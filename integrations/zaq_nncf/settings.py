"""Which weight gets which format: a default, and overrides by name or pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec

Override = QuantSpec | None
"""A weight format, or None: the layer is left to NNCF's own int8."""


class Settings:
    """Resolves a weight's format by the name of its layer.

    Args:
        spec: The format of layers that no override matches; ``PWLQSpec()`` if None.
        overrides: ``{name or pattern: format or None}``. A name stands for a layer, for all layers
            inside a module, or for all that match it as in ``fnmatch``; exact names win.
        learnable: Train the activations' steps, too.

    Raises:
        TypeError: a format that is none, or a key that is no text.
    """

    def __init__(
        self,
        spec: QuantSpec | None = None,
        overrides: Mapping[str, Override] | None = None,
        learnable: bool = False,
    ) -> None:
        self.spec = _checked(PWLQSpec() if spec is None else spec, "spec")
        self.overrides: dict[str, Override] = {}
        self.learnable = learnable
        for key, value in (overrides or {}).items():
            if not isinstance(key, str):
                raise TypeError(
                    f"overrides: a key is a layer's name or a pattern like '*.conv1'; got {key!r}"
                )
            where = f"overrides[{key!r}]"
            self.overrides[key] = None if value is None else _checked(value, where)

    def format_of(self, layer: str) -> tuple[Override, str | None]:
        """The layer's format, and the override that gave it."""
        found = [key for key in self.overrides if matches(key, layer)]
        if not found:
            return self.spec, None
        key = min(found, key=lambda k: k != layer)
        return self.overrides[key], key

    def require_used(self, layers: Iterable[str]) -> None:
        """Raise ValueError if an override matches no layer."""
        names = list(layers)
        idle = [key for key in self.overrides if not any(matches(key, name) for name in names)]
        if idle:
            shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
            raise ValueError(
                f"overrides: no layer matches {', '.join(map(repr, idle))}. The layers that NNCF "
                f"quantizes are: {shown}."
            )


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a layer: exactly, as a module around it, or by * ? [].

    The root that `prepare_model` puts around some models may be left out.
    """
    return any(
        found == pattern or found.startswith(pattern + ".") or fnmatchcase(found, pattern)
        for found in {name, name.removeprefix("model.")}
    )


def layer_name(weight: str) -> str:
    """The name of a layer from that of its weight: without a last part that says only 'weight'."""
    return weight.removesuffix(".weight")


def _checked(spec: object, where: str) -> QuantSpec:
    if isinstance(spec, PWLQSpec | UniformSpec):
        return spec
    raise TypeError(f"{where}: expected a PWLQSpec or a UniformSpec; got {spec!r}.")


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
