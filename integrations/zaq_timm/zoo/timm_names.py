"""timm's names, read from its sources: importing timm, and torch with it, takes seconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@cache
def registered_names() -> frozenset[str]:
    """The models that timm registers, without deprecated names; empty where timm is missing."""
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset()
    return frozenset(_names_in(Path(spec.origin).parent / "models"))


def _names_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        yield from _REGISTERED.findall(path.read_text(encoding="utf-8"))


def matching(pattern: str) -> list[str]:
    """The names that a wildcard matches, in the order of ``timm.list_models``."""
    return sorted((name for name in registered_names() if fnmatch(name, pattern)), key=_natural)


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]
