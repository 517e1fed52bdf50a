"""Names of weight formats as users type them (``pwlq4``); torch is loaded only for a spec."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zaq_plugin.pwlq import QuantSpec


def check_format(text: str) -> tuple[str, int]:
    """Kind and MAC bits of a format's name, such as ``pwlq4``.

    Raises:
        ValueError: no such format.
    """
    found = re.fullmatch(r"(pwlq|uniform|minmax)(\d)", text)
    if found and 2 <= int(found[2]) <= (6 if found[1] == "pwlq" else 8):
        return found[1], int(found[2])
    raise ValueError(
        f"weights must be pwlq2 to pwlq6, uniform2 to uniform8 or minmax2 to minmax8; got {text!r}."
    )


def format_in_words(text: str) -> str:
    """A format with both widths, as its spec's label begins; torch is not loaded for it.

    Raises:
        ValueError: no such format.
    """
    kind, bits = check_format(text)
    name = "PWLQ" if kind == "pwlq" else "uniform"
    return f"{name} {bits}b MAC/{bits + (kind == 'pwlq')}b stored"


def weight_spec(text: str) -> QuantSpec:
    """The weights' grid from its name, such as ``pwlq4``.

    Raises:
        ValueError: no such format.
    """
    from zaq_plugin.pwlq import PWLQSpec, UniformSpec

    kind, bits = check_format(text)
    if kind == "pwlq":
        return PWLQSpec(bits=bits)
    return UniformSpec(bits, "asymmetric", "mse" if kind == "uniform" else "minmax")
