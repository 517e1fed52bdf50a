"""Every number format: its kind in files, its class, and its names as users type them.

A new format is one line of `FORMATS`. This file imports nothing, so that a command which only looks
at a name need not load torch (`zaq_timm.zoo.light`); classes are found by
`zaq_plugin.pwlq.registry`.
"""

import re
from typing import NamedTuple


class Name(NamedTuple):
    """A name before a width, as ``pwlq`` in ``pwlq4``.

    Attributes:
        low, high: the narrowest width and the widest.
        words: what it stands for, with both widths; ``{0}`` is the width, ``{1}`` one more.
    """

    low: int
    high: int
    words: str


class Line(NamedTuple):
    """One format.

    Attributes:
        where: ``module:class``.
        names: the first one is the family's, which strategies' ``levels`` take.
    """

    where: str
    names: dict[str, Name]


_UNIFORM = Name(2, 8, "uniform {0}b MAC/{0}b stored")

FORMATS = {
    "pwlq": Line(
        "zaq_plugin.pwlq.piecewise:PWLQSpec", {"pwlq": Name(2, 6, "PWLQ {0}b MAC/{1}b stored")}
    ),
    "uniform": Line(
        "zaq_plugin.pwlq.uniform:UniformSpec", {"uniform": _UNIFORM, "minmax": _UNIFORM}
    ),
    "power-of-two": Line(
        "zaq_plugin.pwlq.power_of_two:PowerOfTwoSpec",
        {"pot": Name(2, 4, "power of two {0}b MAC/{0}b stored")},
    ),
    "codebook": Line(
        "zaq_plugin.pwlq.codebook:CodebookSpec",
        {"codebook": Name(2, 7, "codebook 8b MAC/{0}b stored")},
    ),
}


def widths_in_words(low: int, high: int, name: str = "") -> str:
    """``pwlq2 to pwlq6``, or the only one there is."""
    return f"{name}{low} to {name}{high}" if low < high else f"{name}{low}"


def ranges() -> list[str]:
    """Every name with its widths, such as ``pwlq2 to pwlq6``."""
    return [
        widths_in_words(facts.low, facts.high, name)
        for line in FORMATS.values()
        for name, facts in line.names.items()
    ]


def family(kind: str) -> str:
    """What the formats of a kind are called, before the bits."""
    return next(iter(FORMATS[kind].names))


def kind_named(name: str) -> str:
    """The kind of a name such as ``pwlq``.

    Raises:
        ValueError: no format is called so.
    """
    for kind, line in FORMATS.items():
        if name in line.names:
            return kind
    known = ", ".join(repr(known) for line in FORMATS.values() for known in line.names)
    raise ValueError(f"a format is one of {known}; got {name!r}.")


def split_name(text: str) -> tuple[str, int]:
    """Name and width of a text such as ``pwlq4``.

    Raises:
        ValueError: no format has that name, or that width.
    """
    names = {name: facts for line in FORMATS.values() for name, facts in line.names.items()}
    match = re.fullmatch(r"([a-z-]+)(\d)", text)
    if match and match[1] in names and names[match[1]].low <= int(match[2]) <= names[match[1]].high:
        return match[1], int(match[2])
    *others, last = ranges()
    raise ValueError(f"weights must be {', '.join(others)} or {last}; got {text!r}.")


def in_words(text: str) -> str:
    """A format's text with both widths, as its spec's label begins.

    Raises:
        ValueError: there is no such format.
    """
    name, bits = split_name(text)
    return FORMATS[kind_named(name)].names[name].words.format(bits, bits + 1)
