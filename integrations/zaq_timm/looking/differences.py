"""Two models or results, layer by layer, the worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from zaq_plugin.pwlq import sqnr_db
from zaq_plugin.report import Audit
from zaq_timm.looking.contents import Contents


@dataclass(frozen=True)
class LayerDifference:
    """One layer in both.

    Attributes:
        layer: its name; results of several models have the model's in front.
        numel: number of weights; None where neither says.
        before, after: SQNR of the weight in the first and the second, in dB, as their audits say;
            None where weights were compared.
        sqnr_db: what the layer is sorted by: of the second's weight against the first's, or the
            smaller one of the audits'. ``inf`` if they are equal.
        note: why there is no figure, or what was done to compare.
    """

    layer: str
    numel: int | None
    before: float | None
    after: float | None
    sqnr_db: float | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; ``inf`` is a text."""
        values = asdict(self)
        return {
            k: str(v) if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()
        }


def compare(first: Contents, second: Contents) -> list[LayerDifference]:
    """All layers of both, the worst first; those in only one of them last, with a note.

    Raises:
        ValueError: one has weights and the other records, or no layer is in both.
    """
    if bool(first.audits) != bool(second.audits):
        results, other = (first, second) if first.audits else (second, first)
        raise ValueError(
            f"{results.name} holds results and {other.name} weights; compare results with results, "
            "or name a file of the folder (models/NAME/model.onnx, quantized.safetensors)."
        )
    if first.audits:
        differences = _by_records(_flat(first.audits), _flat(second.audits))
    else:
        differences = [_by_weight(n, first.weights, second.weights) for n in _names(first, second)]
    if all(d.sqnr_db is None for d in differences):
        mine, others = (_some(c) for c in (first, second))
        raise ValueError(
            f"{first.name} and {second.name} have no layer in common that can be compared: "
            f"{mine} in the one, {others} in the other."
        )
    return sorted(differences, key=lambda d: math.inf if d.sqnr_db is None else d.sqnr_db)


def _names(first: Contents, second: Contents) -> list[str]:
    return list(dict.fromkeys([*first.weights, *second.weights]))


def _some(contents: Contents) -> str:
    names = list(contents.weights) or list(_flat(contents.audits))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "none"


def _by_weight(
    name: str, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> LayerDifference:
    one, other = first.get(name), second.get(name)
    if one is None or other is None:
        numel = (other if one is None else one).numel()  # type: ignore[union-attr]
        return LayerDifference(name, numel, None, None, None, _only(one is not None))
    note, candidates = "", [other] if one.shape == other.shape else []
    if one.dim() == other.dim() == 2 and one.shape == other.T.shape:
        candidates.append(other.T)  # ONNX multiplies from the other side
    if not candidates and one.numel() == other.numel():
        candidates, note = [other.reshape(one.shape)], "other shape"
    if not candidates:
        note = f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
        return LayerDifference(name, one.numel(), None, None, None, note)
    noise = max(sqnr_db(one, candidate) for candidate in candidates)
    return LayerDifference(name, one.numel(), None, None, noise, note)


def _only(in_first: bool) -> str:
    return f"only in the {'first' if in_first else 'second'}"


def _flat(audits: Mapping[str, Audit]) -> dict[str, Any]:
    several = len(audits) > 1
    return {
        f"{model}: {record.name}" if several else record.name: record
        for model, audit in audits.items()
        for record in audit
    }


def _by_records(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[LayerDifference]:
    differences = []
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name), second.get(name)
        if one is None or other is None:
            there = first[name] if one is not None else second[name]
            note = _only(one is not None)
            differences.append(LayerDifference(name, there.numel, None, None, None, note))
            continue
        ratios = [r.sqnr_db for r in (one, other) if r.sqnr_db is not None]
        note = "" if ratios else one.reason or other.reason or "no noise recorded"
        if len(ratios) == 1:
            note = f"float in the {'first' if one.sqnr_db is None else 'second'}"
        differences.append(
            LayerDifference(
                name,
                one.numel,
                one.sqnr_db,
                other.sqnr_db,
                min(ratios, default=None),
                note,
            )
        )
    return differences
