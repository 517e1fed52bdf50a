"""Overrides: which layer gets which formats, said in one way for every host.

    overrides = {"stem": None, "layer1": UniformSpec(8), "layer2.*.conv1": (PWLQSpec(3), 6)}

A key is the name of a layer; a pattern with ``*``, ``?`` or ``[...]``, as in ``fnmatch``; the name
of a module around layers; or a module class, subclasses included. A pattern that fits a module's
name means all layers in that module. One precedence holds everywhere:

1. the exact name of the layer;
2. patterns and names of modules around, of several the most specific: the one with the most
   characters besides wildcards, then the longest, then the one given first;
3. module classes: the layer's own class and its bases from the most derived on, then the class of
   the module around it and its bases, and so on outwards;
4. the default.

A value is a weight format, a pair (weight format or None, activations), or None, which leaves the
layer float.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from zaq_plugin.errors import did_you_mean
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.student.layer import own_class

Activations = QuantSpec | int | None
"""Grid of a layer's input: a spec, the bits of a uniform grid (2 to 8), or None: float."""

Override = QuantSpec | tuple[QuantSpec | None, Activations] | None
"""A weight format, a pair (weight format or None, activations), or None: the layer stays float."""

Key = str | type[nn.Module]
"""A layer's name, a pattern, the name of a module around layers, or a module class."""

Classes = Sequence[type]
"""A layer's own class, then those of the modules around it from the inside out."""

SHOWN = 20
"""Names that an error lists."""


@dataclass(frozen=True)
class Choice:
    """The formats that one override gives.

    Attributes:
        key: The override's key.
        weights: Format of the weight; None leaves the layer float.
        activations: Grid of the layer's input.
        own_activations: Whether the override names the activations itself; if not, they are the
            default ones.
    """

    key: Any
    weights: QuantSpec | None
    activations: Activations
    own_activations: bool

    @property
    def reason(self) -> str:
        """What an audit says of a layer with this override."""
        return f"override {label(self.key)}" + (" is None" if self.weights is None else "")


class Overrides:
    """What differs from the default; see the module for keys, values and precedence.

    Args:
        mapping: ``{key: value}``; None for no overrides.
        default: The activations of overrides that name a weight format only.

    Attributes:
        choices: The formats by key, in the order of precedence.

    Raises:
        TypeError: a key or a value of another kind.
        ValueError: activations of a width that does not exist.
    """

    def __init__(self, mapping: Mapping[Any, Override] | None, default: Activations) -> None:
        table: object = {} if mapping is None else mapping
        if not isinstance(table, Mapping):
            raise TypeError(
                "overrides must be a mapping such as {'layer1.*': PWLQSpec(bits=3), 'fc': None}; "
                f"got {table!r}."
            )
        checked: dict[Key, Choice] = {}
        for key, value in table.items():
            where = f"overrides[{label(key)}]"
            checked[check_key(key)] = check_value(value, default, where, key)
        self._texts = [key for key in checked if isinstance(key, str)]
        self._texts.sort(key=_specificity, reverse=True)
        self.choices: dict[Key, Choice] = {key: checked[key] for key in self._texts}
        self.choices.update(checked)

    def __bool__(self) -> bool:
        return bool(self.choices)

    def find(self, name: str, classes: Classes = (), aliases: Sequence[str] = ()) -> Choice | None:
        """The override that decides on a layer; None if none does, and the default holds.

        Args:
            name: The layer's name.
            classes: See `Classes`, and `module_classes`.
            aliases: Further names of the same layer, as good as the first.
        """
        names = (name, *aliases)
        for key in (*names, *(k for k in self._texts if any(matches(k, n) for n in names))):
            if key in self.choices:
                return self.choices[key]
        for cls in classes:
            for base in cls.__mro__:
                if base in self.choices:
                    return self.choices[base]
        return None

    def require_used(
        self, layers: Mapping[str, Classes], others: Mapping[str, Classes] | None = None
    ) -> None:
        """Check that every key means something, be it that another one wins there.

        Args:
            layers: Name and classes of every layer.
            others: What else a key may mean; the error does not list it.

        Raises:
            ValueError: a key that nothing matches.
        """
        modules = {**(others or {}), **layers}
        idle = [
            key for key in self.choices if not any(fits(key, *item) for item in modules.items())
        ]
        if idle:
            raise unmatched("overrides", idle, layers)


def fits(key: Key, name: str, classes: Classes) -> bool:
    """Whether a key means a layer, by its name or by its class."""
    if isinstance(key, str):
        return matches(key, name)
    return any(issubclass(cls, key) for cls in classes)


def matches(key: str, name: str) -> bool:
    """Whether a name or pattern means a layer, or a module around it."""
    around = f"{key}."
    if name == key or name.startswith(around):
        return True
    return fnmatchcase(name, key) or fnmatchcase(name, f"{around}*")


def is_pattern(key: str) -> bool:
    """Whether a key holds wildcards."""
    return any(c in key for c in "*?[")


def label(key: object) -> str:
    """A key as reasons and errors write it."""
    return str(getattr(key, "__name__", None) or repr(key))


def module_classes(model: nn.Module) -> dict[str, tuple[type, ...]]:
    """The classes of every module of a model, by name: its own, then those around it."""
    classes: dict[str, tuple[type, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        around = classes[name.rpartition(".")[0]] if name else ()
        classes[name] = (own_class(module), *around)
    return classes


def classes_at(name: str, classes: Mapping[str, Classes]) -> Classes:
    """The classes at a name, which may be a parameter's: then those around it."""
    while name and name not in classes:
        name = name.rpartition(".")[0]
    return classes.get(name, ())


# ---- checks --------------------------------------------------------------------------------------


def check_key(key: object) -> Key:
    """The key of an override.

    Raises:
        TypeError: it is neither a text nor a module class.
    """
    if isinstance(key, str) or (isinstance(key, type) and issubclass(key, nn.Module)):
        return key
    raise TypeError(
        f"overrides[{label(key)}]: a key is a layer's name, a pattern with * ? [], the name of a "
        f"module around layers, or a module class; got {key!r}."
    )


def check_value(value: object, default: Activations, where: str, key: Any = None) -> Choice:
    """The formats that the value of an override gives.

    Args:
        value: See `Override`.
        default: The activations, where the value names none.
        where: What errors call the value.
        key: The override's key.

    Raises:
        TypeError, ValueError: as in `Overrides`.
    """
    own = isinstance(value, tuple) and len(value) == 2
    weights, activations = value if isinstance(value, tuple) and own else (value, default)
    if weights is not None and not isinstance(weights, QuantSpec):
        raise TypeError(
            f"{where}: expected a weight format such as a PWLQSpec, a pair (weight "
            "format or None, activations), or None for a layer that stays float; got "
            f"{value!r}."
        )
    if own:
        check_activations(activations, where)
    return Choice(key, weights, activations, own)


def check_activations(activations: object, where: str) -> None:
    """Check what stands for the grid of a layer's input; see `Activations`.

    Raises:
        TypeError: it is something else.
        ValueError: a width that does not exist.
    """
    if activations is None:
        return
    if isinstance(activations, QuantSpec):
        if activations.activations == "refused":
            raise ValueError(
                f"{where}: {activations.label} is for weights; activations take a number of bits "
                "(2 to 8), a PWLQSpec (simulated) or None."
            )
        return
    if isinstance(activations, bool) or not isinstance(activations, int):
        raise TypeError(
            f"{where}: activations must be a number of bits (2 to 8), a spec, or None (float "
            f"activations); got {activations!r}."
        )
    if not 2 <= activations <= 8:
        raise ValueError(f"{where}: activations must have 2 to 8 bits; got {activations}.")


def unmatched(where: str, keys: Iterable[Key], layers: Mapping[str, Classes]) -> ValueError:
    """The error for keys that no layer matches: what there is, and what may have been meant."""
    names = list(layers)
    shown = ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
    asked = ", ".join(label(key) + _suggestion(key, layers) for key in keys)
    return ValueError(f"{where}: no layer matches {asked}. The model's layers are: {shown}.")


def _suggestion(key: Key, layers: Mapping[str, Classes]) -> str:
    if isinstance(key, str):
        parts = [name.split(".") for name in layers]
        candidates = [".".join(p[:n]) for p in parts for n in range(1, len(p) + 1)]
        text, sign = key, "'"
    else:
        candidates = [cls.__name__ for classes in layers.values() for cls in classes]
        text, sign = key.__name__, ""
    return did_you_mean(text, candidates, f" (did you mean {sign}{{}}{sign}?)", cutoff=0.7)


def _specificity(key: str) -> tuple[int, int]:
    """Later is more specific."""
    return len(re.sub(r"\[.*?\]|[*?]", "", key)), len(key)
