"""Descriptions of number formats: the piecewise linear grid and the uniform baseline."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

Symmetry = Literal["symmetric", "asymmetric", "one-sided"]
Policy = Literal[
    "gaussian", "laplacian", "gaussian-exact", "laplacian-exact", "search", "joint", "given"
]
GridKind = Literal["int8", "float"]
Overflow = Literal["pairs", "allowed"]

SYMMETRIES = ("symmetric", "asymmetric", "one-sided")
POLICIES = (
    "gaussian",
    "laplacian",
    "gaussian-exact",
    "laplacian-exact",
    "search",
    "joint",
    "given",
)
CLIPS = ("minmax", "mse")
GRIDS = ("int8", "float")
OVERFLOWS = ("pairs", "allowed")
MAX_INT8_BITS = 6


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int from {low} to {high}; got {value!r}.")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}; got {value}.")


_S = TypeVar("_S", bound="_JsonSpec")


class _JsonSpec:
    """JSON round trip shared by the specs; ``kind`` says which class a text describes."""

    kind: ClassVar[str]
    _text: ClassVar[str]

    def to_json(self) -> str:
        """The spec as one line of JSON, with its ``kind``."""
        return self._text

    def _freeze_text(self) -> None:
        """Fix the text once, at construction: the operators take it at every call."""
        text = json.dumps({"kind": self.kind, **asdict(self)})  # type: ignore[call-overload]
        object.__setattr__(self, "_text", text)

    @classmethod
    def from_json(cls: type[_S], text: str) -> _S:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if the text is no JSON object, is of another kind, or has an unknown key.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{cls.__name__}.from_json: not valid JSON ({error}).") from error
        if not isinstance(values, dict):
            raise ValueError(
                f"{cls.__name__}.from_json: expected a JSON object, got {type(values).__name__}."
            )
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls: type[_S], values: dict[str, Any]) -> _S:
        """Build a spec from a dictionary; see `from_json` for the errors."""
        values = dict(values)
        if "kind" in values:  # written by `to_json`, of earlier versions without this key
            values.setdefault("overflow", "allowed")
        kind = values.pop("kind", cls.kind)
        if kind != cls.kind:
            raise ValueError(
                f"{cls.__name__}.from_json: the text describes kind {kind!r}, not {cls.kind!r}; "
                "use zaq_plugin.pwlq.spec_from_json, which reads both."
            )
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"{cls.__name__}: unknown key{'s' if len(unknown) > 1 else ''} "
                f"{', '.join(map(repr, unknown))}; known keys are {', '.join(known)}."
            )
        return cls(**values)


@dataclass(frozen=True)
class PWLQSpec(_JsonSpec):
    """A piecewise linear number format (PWLQ, Fang et al., ECCV 2020, section 3).

    The range of one side, ``[0, m]``, is cut at n breakpoints ``p_1 < ... < p_n < m`` into n + 1
    pieces, and each piece carries a uniform grid of ``b - 1`` bits (``b`` bits for one-sided
    values, which need no sign).

    Attributes:
        bits: MAC bits, the paper's b: the width that the multiplier sees, 2 to 8.
        breakpoints: n, 1 to 3.
        overlapping: the paper's ablation, whose tail grid spans ``[-m, m]`` with offset 0
            (one breakpoint only). Worse than the default, kept for comparison.
        symmetry: ``symmetric`` uses one clip and one set of breakpoints for both signs (the paper);
            ``asymmetric`` gives each side its own, and a channel of one sign the codes of both;
            ``one-sided`` describes values >= 0.
        policy: how clip and breakpoints are chosen. ``gaussian`` and ``laplacian`` are the closed
            forms with clip ``max|w|`` (the exact minimiser outside 3 <= m/sigma <= 10, and for n >
            1); ``gaussian-exact`` and ``laplacian-exact`` always use the minimiser; ``search`` is
            the paper's three-stage search over p/m; ``joint`` minimises the squared error over
            clip and breakpoints together; ``given`` takes them from the caller (``edges=``).
        grid: ``int8`` snaps the levels to ``scale * int8`` so that any int8 kernel computes with
            them exactly; ``float`` keeps the ideal levels.
        shared_endpoints: True is the paper's formula, in which the tail's first level repeats the
            breakpoint; False starts the tail one step further out, so that no code is wasted.
        overflow: ``pairs``: no two neighbouring weights overflow the 16 bits in which processors
            without VNNI add two products, see `zaq_plugin.pwlq.overflow`; ``allowed``: they may.

    Raises:
        ValueError: for a value out of range or a combination that does not exist.
        TypeError: if an integer field is no integer.
    """

    kind: ClassVar[str] = "pwlq"

    bits: int = 4
    breakpoints: int = 1
    overlapping: bool = False
    symmetry: Symmetry = "asymmetric"
    policy: Policy = "joint"
    grid: GridKind = "int8"
    shared_endpoints: bool = False
    overflow: Overflow = "pairs"

    def __post_init__(self) -> None:
        _check_int("bits", self.bits, 2, 8)
        _check_int("breakpoints", self.breakpoints, 1, 3)
        _check_choice("symmetry", self.symmetry, SYMMETRIES)
        _check_choice("policy", self.policy, POLICIES)
        _check_choice("grid", self.grid, GRIDS)
        _check_choice("overflow", self.overflow, OVERFLOWS)
        for name in ("overlapping", "shared_endpoints"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False; got {getattr(self, name)!r}.")
        if self.grid == "int8" and self.bits > MAX_INT8_BITS:
            raise ValueError(
                f"grid='int8' holds at most {MAX_INT8_BITS} bits, got bits={self.bits}: above that "
                "the center's step is finer than the int8 step, and snapping loses PWLQ's gain. "
                "Use grid='float', or UniformSpec(bits=8)."
            )
        if self.overlapping and self.breakpoints != 1:
            raise ValueError(
                "overlapping=True is defined for one breakpoint; got "
                f"breakpoints={self.breakpoints}. Use overlapping=False, the more accurate variant."
            )
        self._freeze_text()

    @property
    def sides(self) -> int:
        """How many sets of edges a channel has: 2 for asymmetric (positive, negative), else 1."""
        return 2 if self.symmetry == "asymmetric" else 1

    @property
    def guarded(self) -> bool:
        """Whether levels must be kept from overflowing; the float grid's are no integers."""
        return self.overflow == "pairs" and self.grid == "int8"

    @property
    def piece_steps(self) -> tuple[int, ...]:
        """Grid steps of each piece of one side, from the center outwards."""
        k = 2**self.bits if self.symmetry == "one-sided" else 2 ** (self.bits - 1)
        tail = k - 1 if self.shared_endpoints or self.overlapping else k
        return (k - 1, *([tail] * self.breakpoints))

    @property
    def num_levels(self) -> int:
        """Distinct codes per channel: (n+1) 2^b - 1, or (n+1) 2^b - 1 - 2n with shared endpoints.

        One-sided: (n+1) 2^b, or (n+1) 2^b - n with shared endpoints.
        """
        one_side = sum(self.piece_steps)
        return one_side + 1 if self.symmetry == "one-sided" else 2 * one_side + 1

    @property
    def mac_bits(self) -> int:
        """Width of the multiplier's weight operand: the paper's b."""
        return self.bits

    @property
    def stored_bits(self) -> int:
        """Bits of one stored code: ceil(log2(num_levels)); b + 1 for one breakpoint."""
        return math.ceil(math.log2(self.num_levels))

    @property
    def label(self) -> str:
        """Short text for tables, with both widths."""
        extras: list[str] = [self.policy]
        if self.breakpoints > 1:
            extras.append(f"n={self.breakpoints}")
        if self.symmetry != "asymmetric":
            extras.append(self.symmetry)
        if self.overlapping:
            extras.append("overlapping")
        if self.grid == "float":
            extras.append("float grid")
        elif self.overflow == "allowed" and self.symmetry != "one-sided":
            extras.append("overflow allowed")
        return f"PWLQ {self.mac_bits}b MAC/{self.stored_bits}b stored ({', '.join(extras)})"


@dataclass(frozen=True)
class UniformSpec(_JsonSpec):
    """A uniform grid with the same interface: the baseline of every table.

    Symmetric levels are ``scale * k`` for ``|k| <= 2^(b-1) - 1`` (narrow range); asymmetric levels
    are ``scale * (k - zero_point)`` for ``0 <= k < 2^b``; one-sided levels are ``scale * k`` for
    ``0 <= k < 2^b``.

    Attributes:
        bits: MAC bits, which are also the stored bits; 2 to 8.
        symmetry: see above; the range always contains zero.
        clip: ``minmax`` takes the whole range, ``mse`` the clip of least squared error.
        overflow: as in `PWLQSpec`; it matters where levels exceed 64, at 7 and 8 bits.

    Raises:
        ValueError: for a value out of range.
        TypeError: if bits is no integer.
    """

    kind: ClassVar[str] = "uniform"

    bits: int = 8
    symmetry: Symmetry = "symmetric"
    clip: Literal["minmax", "mse"] = "minmax"
    overflow: Overflow = "pairs"

    def __post_init__(self) -> None:
        _check_int("bits", self.bits, 2, 8)
        _check_choice("symmetry", self.symmetry, SYMMETRIES)
        _check_choice("clip", self.clip, CLIPS)
        _check_choice("overflow", self.overflow, OVERFLOWS)
        self._freeze_text()

    @property
    def sides(self) -> int:
        """How many clips a channel has: 2 for asymmetric (positive, negative), else 1."""
        return 2 if self.symmetry == "asymmetric" else 1

    @property
    def breakpoints(self) -> int:
        """A uniform grid has none."""
        return 0

    @property
    def overlapping(self) -> bool:
        """A uniform grid has one piece."""
        return False

    @property
    def grid(self) -> GridKind:
        """Uniform levels are integers times a scale by nature."""
        return "int8"

    @property
    def guarded(self) -> bool:
        """Whether levels exceed 64, so that two may overflow, and still are int8."""
        return self.overflow == "pairs" and self.bits == (8 if self.symmetry == "symmetric" else 7)

    @property
    def num_levels(self) -> int:
        """2^b, or 2^b - 1 for the symmetric narrow range."""
        return 2**self.bits - (1 if self.symmetry == "symmetric" else 0)

    @property
    def mac_bits(self) -> int:
        """Width of the multiplier's weight operand."""
        return self.bits

    @property
    def stored_bits(self) -> int:
        """Bits of one stored code."""
        return self.bits

    @property
    def label(self) -> str:
        """Short text for tables, with both widths."""
        extras = self.clip if self.symmetry == "symmetric" else f"{self.clip}, {self.symmetry}"
        if self.bits > 6 and self.overflow == "allowed":
            extras += ", overflow allowed"
        return f"uniform {self.mac_bits}b MAC/{self.stored_bits}b stored ({extras})"


QuantSpec = PWLQSpec | UniformSpec

_KINDS: dict[str, type[PWLQSpec] | type[UniformSpec]] = {
    PWLQSpec.kind: PWLQSpec,
    UniformSpec.kind: UniformSpec,
}
"""What `spec_from_json` reads."""


@functools.lru_cache(maxsize=1024)
def spec_from_json(text: str) -> QuantSpec:
    """Read a spec of any kind from what its ``to_json`` wrote.

    Raises:
        ValueError: if the text is no JSON object, has no known ``kind``, or has an unknown key.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"spec_from_json: not valid JSON ({error}).") from error
    kind = values.get("kind") if isinstance(values, dict) else None
    if isinstance(kind, str) and kind in _KINDS:
        return _KINDS[kind].from_dict(values)
    known = " or ".join(map(repr, _KINDS))
    raise ValueError(f"spec_from_json: kind must be {known}; got {kind!r}.")
