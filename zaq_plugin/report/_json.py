"""JSON as every record of a run is written: strict and ordered.

Non-finite numbers (an exactly represented layer has infinite SQNR) have no spelling in JSON; they
are written as the strings ``"inf"``, ``"-inf"`` and ``"nan"`` and read back with `to_float`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def plain(value: Any, where: str = "value") -> Any:
    """Turns `value` into what JSON knows: dicts with string keys, lists, strings, numbers, None.

    Objects with ``to_json`` give what that says; dataclasses become dicts; tensors and NumPy arrays
    become (nested) lists; tuples become lists; sets become sorted lists; paths become strings.

    Raises:
        TypeError: `value` holds something JSON has no place for; the text names where it sits.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [plain(v, where) for v in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "to_json") and not isinstance(value, type):
        return json.loads(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in fields}
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):
        return plain(value.tolist(), where)
    raise TypeError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold; "
        "expected numbers, strings, lists, dicts, dataclasses or tensors. "
        "Convert it (for example with str()) before recording it."
    )


def dumps(value: Any) -> str:
    """`value` as indented JSON text, keys in the order given, ending in a newline."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads_object(text: str, what: str) -> dict[str, Any]:
    """Reads JSON `text` that must be an object.

    Raises:
        ValueError: not JSON, or JSON that is no object; `what` names the thing that was read.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not valid JSON ({error}); was the file cut short?") from error
    if not isinstance(data, dict):
        raise ValueError(f"{what} must be a JSON object, got a {type(data).__name__}.")
    return data


def check_keys(data: Mapping[str, Any], allowed: Iterable[str], what: str) -> None:
    """Refuses keys that nobody would read.

    Raises:
        ValueError: names the unknown keys and the known ones.
    """
    names = list(allowed)
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise ValueError(
            f"{what} has unknown key(s) {', '.join(map(repr, unknown))}; "
            f"known keys are {', '.join(names)}."
        )


def to_float(value: Any) -> Any:
    """A float from what `plain` wrote: ``"inf"``, ``"-inf"`` and ``"nan"`` become numbers again."""
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
