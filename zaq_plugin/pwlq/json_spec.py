"""What a spec's fields may be, and its one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any, ClassVar, TypeVar


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless a field has one of its values."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Raise TypeError unless a field is an integer, ValueError unless it lies from low to high."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int from {low} to {high}; got {value!r}.")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}; got {value}.")


def json_object(text: str, who: str) -> dict[str, Any]:
    """What a text of JSON holds, which must be an object.

    Raises:
        ValueError: if it is none; ``who`` reads it.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{who}: not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{who}: expected a JSON object, got {type(values).__name__}.")
    return values


_S = TypeVar("_S", bound="JsonSpec")


class JsonSpec:
    """JSON round trip shared by the formats; ``kind`` says which class a text describes."""

    kind: ClassVar[str]
    _text: str

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
        return cls.from_dict(json_object(text, f"{cls.__name__}.from_json"))

    @classmethod
    def from_dict(cls: type[_S], values: dict[str, Any]) -> _S:
        """Build a spec from a dictionary; see `from_json` for the errors."""
        values = dict(values)
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        if "kind" in values and "overflow" in known:  # earlier versions wrote none
            values.setdefault("overflow", "allowed")
        kind = values.pop("kind", cls.kind)
        if kind != cls.kind:
            raise ValueError(
                f"{cls.__name__}.from_json: the text describes kind {kind!r}, not {cls.kind!r}; "
                "use zaq_plugin.pwlq.spec_from_json, which reads all."
            )
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"{cls.__name__}: unknown key{'s' if len(unknown) > 1 else ''} "
                f"{', '.join(map(repr, unknown))}; known keys are {', '.join(known)}."
            )
        return cls(**values)
