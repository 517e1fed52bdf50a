"""The formats that the demo compares, and the widths it compares them at."""

from collections.abc import Callable
from dataclasses import dataclass

from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec

WIDTHS = ((8, 8), (6, 8), (4, 8), (4, 4), (3, 3), (2, 4))
"""Pairs of MAC bits: weights, activations."""


@dataclass(frozen=True)
class Format:
    """A family of grids: its name in tables, and the grid at a width."""

    name: str
    spec: Callable[[int], QuantSpec]


def _pwlq(bits: int) -> QuantSpec:
    # Above 6 bits int8 levels would be too coarse; the format refuses them.
    return PWLQSpec(bits=bits, grid="int8" if bits <= 6 else "float")


def _uniform(clip: str) -> Callable[[int], QuantSpec]:
    # Asymmetric like PWLQ's default, so that the comparison is of like with like.
    return lambda bits: UniformSpec(bits=bits, symmetry="asymmetric", clip=clip)  # type: ignore[arg-type]


def formats_at(bits: int) -> list[tuple[str, QuantSpec]]:
    """What is compared at a width: every format, and the uniform grid of PWLQ's stored bits."""
    found = [(form.name, form.spec(bits)) for form in FORMATS]
    stored = found[-1][1].stored_bits
    if stored <= MAX_UNIFORM_BITS:
        best_clip = FORMATS[1]
        found.insert(-1, (best_clip.name, best_clip.spec(stored)))
    return found


MAX_UNIFORM_BITS = 8

FORMATS = (
    Format("uniform, min-max", _uniform("minmax")),
    Format("uniform, best clip", _uniform("mse")),
    Format("PWLQ", _pwlq),
)
