"""What a run says about itself: one record per layer, one row per result.

Nothing is silently left out: a layer that was not quantized carries its reason, and
`Audit.require_any` turns "nothing was quantized" into an error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from zaq_plugin.report._json import check_keys, dumps, loads_object, plain, to_float


@dataclass(frozen=True)
class LayerRecord:
    """What happened to one layer.

    Attributes:
        name: Qualified name in the model, such as ``layer1.0.conv1``.
        kind: The module's or operator's type, such as ``Conv2d``.
        numel: Number of weights.
        quantized: Whether the weight now sits on a grid.
        reason: Why it was not quantized. Required then; for a quantized layer an optional remark,
            such as "kept at 8 bits: first layer".
        spec: The label of the weight's grid, such as ``PWLQ b=4 (5 stored)``.
        mac_bits: The multiplier's width for the weight.
        stored_bits: Bits of one weight's code on disk.
        stored_bytes: Everything kept for this layer's weight: packed codes, and its levels.
        sqnr_db: Signal to quantization noise of the weight, in dB; ``inf`` if exact.
        kernel: What runs the layer, such as ``int8 convolution (fbgemm)`` or ``simulated``.
        entropy_bits: Measured entropy of the codes, in bits per weight.
        activation: The label of the input's grid, such as ``uniform 8 bits per tensor``.

    Raises:
        ValueError: a skipped layer without a reason; a quantized layer without its widths.
    """

    name: str
    kind: str
    numel: int
    quantized: bool
    reason: str | None = None
    spec: str | None = None
    mac_bits: float | None = None
    stored_bits: float | None = None
    stored_bytes: int | None = None
    sqnr_db: float | None = None
    kernel: str | None = None
    entropy_bits: float | None = None
    activation: str | None = None

    def __post_init__(self) -> None:
        if self.numel < 0:
            raise ValueError(f"Layer '{self.name}': numel must be >= 0, got {self.numel}.")
        if not self.quantized:
            if not (self.reason and self.reason.strip()):
                raise ValueError(
                    f"Layer '{self.name}' ({self.kind}) is recorded as not quantized without a "
                    "reason; pass reason='...' so that the report can say why."
                )
            return
        missing = [n for n in ("spec", "mac_bits", "stored_bits") if vars(self)[n] is None]
        if missing:
            raise ValueError(
                f"Layer '{self.name}' ({self.kind}) is recorded as quantized without "
                f"{', '.join(missing)}; both bit widths and the grid's label must be given."
            )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values, fields in order."""
        return dict(plain(self, f"layer '{self.name}'"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerRecord:
        """The inverse of `to_dict`.

        Raises:
            ValueError: an unknown or a missing key.
        """
        return _build(cls, data, f"Layer record {data.get('name', '?')!r}")


class Widths(Protocol):
    """A weight's format."""

    @property
    def label(self) -> str:
        """For tables."""

    @property
    def mac_bits(self) -> int:
        """The multiplier's width."""

    @property
    def stored_bits(self) -> int:
        """Of a code on disk."""


def weight_facts(spec: Widths, tensor: Any = None) -> dict[str, Any]:
    """What a `LayerRecord` says of a quantized weight, in every host.

    Args:
        spec: Its format.
        tensor: Its codes and levels, a `zaq_plugin.pwlq.PWLQTensor` or a sum of several; they know
            their own widths, size, error and entropy. Without them there are widths alone.
    """
    if tensor is None:
        return {"spec": spec.label, "mac_bits": spec.mac_bits, "stored_bits": spec.stored_bits}
    names = ("mac_bits", "stored_bits", "stored_bytes", "sqnr_db", "entropy_bits")
    return {"spec": spec.label, **{name: getattr(tensor, name) for name in names}}


def uniform_label(bits: int) -> str:
    """What a `LayerRecord` says of a layer's input on a uniform grid."""
    return f"uniform {bits} bits per tensor"


@dataclass
class Audit:
    """All layers of one model, in the model's order: what was quantized, what was not, and why."""

    records: list[LayerRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.records = list(self.records)
        seen: set[str] = set()
        for record in self.records:
            if record.name in seen:
                raise ValueError(f"Layer '{record.name}' is recorded twice in one audit.")
            seen.add(record.name)

    def add(self, record: LayerRecord) -> None:
        """Appends a record.

        Raises:
            ValueError: the layer has a record already.
        """
        if any(record.name == other.name for other in self.records):
            raise ValueError(f"Layer '{record.name}' is recorded twice in one audit.")
        self.records.append(record)

    def __iter__(self) -> Iterator[LayerRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, name: str) -> LayerRecord:
        for record in self.records:
            if record.name == name:
                return record
        raise KeyError(f"no layer '{name}' in this audit")

    @property
    def quantized(self) -> list[LayerRecord]:
        """The layers whose weights sit on a grid."""
        return [r for r in self.records if r.quantized]

    @property
    def skipped(self) -> list[LayerRecord]:
        """The layers left alone; each has a reason."""
        return [r for r in self.records if not r.quantized]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all weights: recorded sizes, and four bytes a weight where none is recorded."""
        return sum(4 * r.numel if r.stored_bytes is None else r.stored_bytes for r in self.records)

    @property
    def mac_bits(self) -> float | None:
        """Mean MAC bits over the quantized weights; None if there are none."""
        return self._mean("mac_bits")

    @property
    def stored_bits(self) -> float | None:
        """Mean stored bits over the quantized weights; None if there are none."""
        return self._mean("stored_bits")

    def _mean(self, name: str) -> float | None:
        total = sum(r.numel for r in self.quantized)
        if total == 0:
            return None
        mean = sum(vars(r)[name] * r.numel for r in self.quantized) / total
        return int(mean) if mean == int(mean) else mean

    def require_any(self) -> Audit:
        """Returns itself, if any layer was quantized.

        Raises:
            ValueError: nothing was quantized; the text lists the reasons.
        """
        if self.quantized:
            return self
        if not self.records:
            raise ValueError(
                "nothing was quantized: the model has no layer with a weight to quantize "
                "(convolutions, transposed convolutions and linear layers are). Was the right "
                "model passed in?"
            )
        shown = [f"  {r.name} ({r.kind}): {r.reason}" for r in self.records[:8]]
        if len(self.records) > 8:
            shown.append(f"  ... and {len(self.records) - 8} more")
        raise ValueError(
            f"nothing was quantized: all {len(self.records)} layers were left alone:\n"
            + "\n".join(shown)
            + "\nChange the overrides or patterns that exclude them."
        )

    def to_json(self) -> str:
        """The audit as JSON text."""
        return dumps({"records": self.records})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Audit:
        """The inverse of the JSON object.

        Raises:
            ValueError: an unknown key, here or in a record.
        """
        check_keys(data, ["records"], "Audit")
        return cls([LayerRecord.from_dict(r) for r in data.get("records", [])])

    @classmethod
    def from_json(cls, text: str) -> Audit:
        """The inverse of `to_json`."""
        return cls.from_dict(loads_object(text, "Audit"))

    def __str__(self) -> str:
        return _told_by[-1](self) if _told_by else repr(self)


_told_by: list[Callable[[Audit], str]] = []


def tells_audits(text: Callable[[Audit], str]) -> Callable[[Audit], str]:
    """Decorator of the function that makes the text of ``str(audit)``."""
    _told_by.append(text)
    return text


@dataclass(frozen=True)
class ResultRow:
    """One method's result, with what a number needs to mean something.

    Attributes:
        method: What was done, such as ``PWLQ joint + bias correction``; ``FP32`` for the baseline.
        weight_mac_bits: Multiplier's width for weights (32 for float).
        weight_stored_bits: Bits of one weight's code on disk.
        activation_mac_bits: Multiplier's width for activations (32 for float).
        activation_stored_bits: Bits of one activation in memory.
        size_bytes: All weights with what generates their levels, and whatever stays float.
        sqnr_db: Signal to quantization noise of the weights, in dB.
        top1: Accuracy in percent, 0 to 100; the mean over the seeds.
        agreement: Share of images with FP32's top class, in percent.
        seeds: Number of seeds behind the row.
        spread: Standard deviation of `top1` over the seeds, in points.
        protocol: How it was measured; see `zaq_plugin.report.protocol.PROTOCOL_KEYS`.
        seconds: Wall-clock time of the method.

    Raises:
        ValueError: stored bits below 1, percentages outside 0 to 100, several seeds without a
            spread.
    """

    method: str
    weight_mac_bits: float
    weight_stored_bits: float
    activation_mac_bits: float
    activation_stored_bits: float
    size_bytes: int | None = None
    sqnr_db: float | None = None
    top1: float | None = None
    agreement: float | None = None
    seeds: int = 1
    spread: float | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in _BIT_FIELDS:
            bits = vars(self)[name]
            if not 1 <= bits <= 64:
                raise ValueError(f"Row '{self.method}': {name} must lie in 1..64, got {bits}.")
        for name in ("top1", "agreement"):
            value = vars(self)[name]
            if value is not None and not (math.isnan(value) or 0 <= value <= 100):
                raise ValueError(
                    f"Row '{self.method}': {name} is a percentage in 0..100, got {value}."
                )
        if self.seeds < 1:
            raise ValueError(f"Row '{self.method}': seeds must be at least 1, got {self.seeds}.")
        if self.seeds > 1 and self.top1 is not None and self.spread is None:
            raise ValueError(
                f"Row '{self.method}' is a mean over {self.seeds} seeds without its spread; "
                "pass spread=standard deviation of top1 over the seeds, in points."
            )

    @property
    def is_float(self) -> bool:
        """Whether this is a float baseline: weights and activations of at least 16 bits."""
        return self.weight_stored_bits >= 16 and self.activation_stored_bits >= 16

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON values, fields in order."""
        return dict(plain(self, f"row '{self.method}'"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResultRow:
        """The inverse of `to_dict`.

        Raises:
            ValueError: an unknown or a missing key.
        """
        return _build(cls, data, f"Result row {data.get('method', '?')!r}")


_BIT_FIELDS = (
    "weight_mac_bits",
    "weight_stored_bits",
    "activation_mac_bits",
    "activation_stored_bits",
)


_Record = TypeVar("_Record", LayerRecord, ResultRow)


def _build(cls: type[_Record], data: Mapping[str, Any], what: str) -> _Record:
    fields = dataclasses.fields(cls)
    check_keys(data, [f.name for f in fields], what)
    required = [
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing: Iterable[str] = [name for name in required if name not in data]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}.")
    numbers = {f.name for f in fields if "float" in str(f.type)}
    return cls(**{k: to_float(v) if k in numbers else v for k, v in data.items()})
