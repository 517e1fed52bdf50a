"""The formats that the demo compares, and the widths and grids it compares them at."""

from collections.abc import Callable
from dataclasses import dataclass

from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec

PER_TENSOR = ", per tensor"
"""Ends the names of methods whose weights have one grid a tensor."""
MAX_UNIFORM_BITS = 8


@dataclass(frozen=True)
class Width:
    """What is compared together.

    Attributes:
        weights, activations: MAC bits.
        per_tensor: One grid a weight tensor; else one per output channel.
    """

    weights: int
    activations: int
    per_tensor: bool = False

    def named(self, method: str) -> str:
        """A method's name with the granularity, where it is not the usual one."""
        return method + PER_TENSOR if self.per_tensor else method


WIDTHS = (
    Width(8, 8),
    Width(4, 8),
    Width(4, 4),
    Width(4, 8, per_tensor=True),
    Width(4, 4, per_tensor=True),
    Width(3, 8, per_tensor=True),
)


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


FORMATS = (
    Format("uniform, min-max", _uniform("minmax")),
    Format("uniform, best clip", _uniform("mse")),
    Format("PWLQ", _pwlq),
)


def formats_at(bits: int) -> list[tuple[str, QuantSpec]]:
    """What is compared at a width: every format, and the uniform grid of PWLQ's stored bits."""
    formats = [(form.name, form.spec(bits)) for form in FORMATS]
    stored = formats[-1][1].stored_bits
    if stored <= MAX_UNIFORM_BITS:
        best_clip = FORMATS[1]
        formats.insert(-1, (best_clip.name, best_clip.spec(stored)))
    return formats


def compared() -> list[tuple[str, QuantSpec, Width]]:
    """Method, grid and width of every simulated row, each once."""
    rows: dict[tuple[str, int, int], tuple[str, QuantSpec, Width]] = {}
    for width in WIDTHS:
        for form, spec in formats_at(width.weights):
            name = width.named(form)
            rows.setdefault((name, spec.mac_bits, width.activations), (name, spec, width))
    return list(rows.values())
