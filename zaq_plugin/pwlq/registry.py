"""Number formats by their kind in JSON, and by their names as users type them."""

from __future__ import annotations

import functools
import json
from importlib import import_module

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.names import FORMATS, kind_named, split_name


@functools.lru_cache(maxsize=1024)
def spec_from_json(text: str) -> Format:
    """Read a spec of any kind from what its ``to_json`` wrote.

    Raises:
        ValueError: if the text is no JSON object, has no known ``kind``, or has an unknown key.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"spec_from_json: not valid JSON ({error}).") from error
    kind = values.get("kind") if isinstance(values, dict) else None
    if isinstance(kind, str) and kind in FORMATS:
        return _class_of(kind).from_dict(values)
    known = " or ".join(map(repr, FORMATS))
    raise ValueError(f"spec_from_json: kind must be {known}; got {kind!r}.")


def _class_of(kind: str) -> type[Format]:
    module, _, name = FORMATS[kind].where.partition(":")
    subclass: type[Format] = getattr(import_module(module), name)
    return subclass


def format_named(name: str) -> type[Format]:
    """The format that is called so before the bits.

    Raises:
        ValueError: none is.
    """
    return _class_of(kind_named(name))


def spec_from_name(text: str) -> Format:
    """The format that a text such as ``pwlq4``, ``uniform8``, ``pot4`` or ``codebook4`` names.

    Raises:
        ValueError: there is none.
    """
    name, bits = split_name(text)
    return format_named(name).of_bits(name, bits)
