"""What is installed, and what zaq_plugin accepts, as its own metadata (`setup.cfg`) says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from zaq_plugin._versions import release

OK, MISSING, TOO_OLD, TOO_NEW = "ok", "missing", "too old", "too new"
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*\(?([^;()]*)\)?\s*(?:;\s*extra\s*==\s*\W(\w+)\W)?")
_FOR_TESTS = {"test", "dev", "docs", "bench", "all"}


@dataclass(frozen=True)
class Package:
    """A package that zaq_plugin works with.

    Attributes:
        name: as pip knows it.
        installed: its version; None if it is not there.
        accepted: the range, such as ``>=0.17, <0.19``; empty for any.
        extras: which extras of zaq_plugin bring it; empty for what is always needed.
        status: one of `OK`, `MISSING`, `TOO_OLD`, `TOO_NEW`.
    """

    name: str
    installed: str | None
    accepted: str
    extras: tuple[str, ...]
    status: str

    @property
    def needed(self) -> bool:
        """Whether nothing works without it."""
        return not self.extras

    @property
    def command(self) -> str | None:
        """What installs a version that fits; None where one is installed."""
        if self.status == OK:
            return None
        if self.status == MISSING and self.extras:
            return f"pip install 'zaq_plugin[{self.extras[0]}]'"
        return f"pip install '{self.name}{self.accepted.replace(' ', '')}'"


def packages(requirements: Iterable[str] | None = None) -> list[Package]:
    """Every package that zaq_plugin names, those always needed first.

    A package that is always needed has a second row where an extra narrows its range: that range
    is no matter of somebody who does not use the extra.

    Args:
        requirements: as metadata holds them; those of the installed zaq_plugin by default.

    Raises:
        importlib.metadata.PackageNotFoundError: zaq_plugin itself is not installed.
    """
    if requirements is None:
        requirements = metadata.requires("zaq_plugin") or []
    extras: dict[tuple[str, bool], list[str]] = {}
    bounds: dict[tuple[str, bool], set[str]] = {}
    for line in requirements:
        match = _REQUIREMENT.match(line)
        if match is None or match[3] in _FOR_TESTS or match[1] == "zaq_plugin":
            continue
        key = (match[1], match[3] is None)
        extras.setdefault(key, []).extend([match[3]] if match[3] else [])
        bounds.setdefault(key, set()).update(b.strip() for b in match[2].split(",") if b.strip())
    rows = [_package(key[0], tuple(extras[key]), bounds[key]) for key in extras]
    return sorted(rows, key=lambda package: not package.needed)


def _package(name: str, extras: tuple[str, ...], bounds: set[str]) -> Package:
    try:
        installed: str | None = metadata.version(name)
    except metadata.PackageNotFoundError:
        installed = None
    status = MISSING if installed is None else judge(installed, bounds)
    return Package(name, installed, ", ".join(_tightest(bounds)), extras, status)


def _tightest(bounds: set[str]) -> list[str]:
    """The highest lower bound and the lowest upper one."""
    lower = sorted((b for b in bounds if b.startswith(">=")), key=lambda b: _padded(b[2:]))
    upper = sorted((b for b in bounds if b.startswith("<")), key=lambda b: _padded(b[1:]))
    return lower[-1:] + upper[:1]


def judge(version: str, bounds: Iterable[str]) -> str:
    """Whether a version lies within bounds (``>=0.17``, ``<0.19``); those of both kinds count."""
    here = _padded(version)
    for bound in bounds:
        if bound.startswith(">=") and here < _padded(bound[2:]):
            return TOO_OLD
        if bound.startswith("<") and not bound.startswith("<=") and here >= _padded(bound[1:]):
            return TOO_NEW
    return OK


def _padded(version: str) -> tuple[int, ...]:
    numbers = release(version)
    return numbers + (0,) * (4 - len(numbers))
