"""Quantities as users type them: budgets, sizes, times, image shapes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TIMES = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """A limit on the weights: a mean of stored bits, or bytes in all; one of the two."""

    bits: float | None = None
    size: int | None = None


def parse_budget(text: str) -> Budget | None:
    """``4.5bits`` or ``1.2MB``; None for nothing.

    Raises:
        ValueError: something else.
    """
    if not text:
        return None
    match = re.fullmatch(r"\s*([\d.]+)\s*bits?\s*", text)
    try:
        if match:
            bits = float(match[1])
            if not 1 <= bits <= 32:
                raise ValueError(f"budget must be 1 to 32 stored bits; got {bits:g}.")
            return Budget(bits=bits)
        return Budget(size=size_in_bytes("budget", text))
    except ValueError as error:
        if "1 to 32" in str(error):
            raise
        raise ValueError(
            f"budget must be stored bits (4.5bits) or a size (1.2MB); got {text!r}."
        ) from error


def size_in_bytes(name: str, text: str) -> int | None:
    """``4GB`` in bytes (GB is 10^9, GiB 2^30); None for nothing.

    Raises:
        ValueError: something else.
    """
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b)\s*", text, re.IGNORECASE)
    if not match or not float(match[1]) > 0:
        raise ValueError(f"{name} must be a size such as 800MB or 4GB; got {text!r}.")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def seconds_of(name: str, text: str) -> float | None:
    """``90s``, ``30m`` or ``2h`` in seconds; None for nothing.

    Raises:
        ValueError: something else.
    """
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", text)
    if not match or not float(match[1]) > 0:
        raise ValueError(f"{name} must be a time such as 90s, 30m or 2h; got {text!r}.")
    return float(match[1]) * _TIMES[match[2]]


def input_shape(text: str) -> tuple[int, int, int] | None:
    """``3x224x224`` as numbers; None for nothing.

    Raises:
        ValueError: something else.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not match or 0 in (shape := tuple(int(v) for v in match.groups())):
        raise ValueError(f"input_size must be CHANNELSxHEIGHTxWIDTH (3x224x224); got {text!r}.")
    return shape[0], shape[1], shape[2]


def per_channel(name: str, text: str) -> tuple[float, ...] | None:
    """``0.5``, or a number a channel (``0.485,0.456,0.406``), of pixels from 0 to 1; None for none.

    Raises:
        ValueError: something else, or a deviation that is not above 0.
    """
    if not text:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(v) and (v > 0 or name != "std") for v in numbers):
        kind = "numbers above 0" if name == "std" else "numbers"
        raise ValueError(
            f"{name} must be one number, or one a channel ({kind} such as 0.5 or 0.49,0.46,0.41); "
            f"got {text!r}."
        )
    return numbers
