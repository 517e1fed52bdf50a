"""What a run needs of the core before torch is loaded: whole files, words, names."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zaq_timm.zoo.errors import RunError


@functools.cache
def core_file(name: str) -> ModuleType:
    """A module of `zaq_plugin` by itself; it may import the standard library alone.

    Args:
        name: Below the package, such as ``pwlq/names``.
    """
    package = util.find_spec("zaq_plugin")  # of a package at the top, which this does not import
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / f"{name}.py"
    spec = util.spec_from_file_location(f"zaq_light_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_whole(path: Path, data: bytes | str) -> Path:
    """`zaq_plugin.files.write_whole`, for which torch is not loaded."""
    written: Path = core_file("files").write_whole(path, data)
    return written


def write_json(path: Path, value: Any) -> Path:
    """`write_whole` of a value as JSON; non-finite numbers are refused."""
    return write_whole(
        path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def cannot_write(path: Path, error: OSError) -> RunError:
    """What to say when a result cannot be written."""
    return RunError(
        f"cannot write {path}: {error.strerror or error}. What is done is kept; make room or give "
        "another --out, and run the same command to go on."
    )


if TYPE_CHECKING:
    from zaq_plugin.pwlq import QuantSpec

NAMES = "pwlq/names"


def check_format(text: str) -> tuple[str, int]:
    """Name and width of a format, such as ``pwlq4``: see `zaq_plugin.pwlq.names`.

    Raises:
        ValueError: no such format.
    """
    match: tuple[str, int] = core_file(NAMES).split_name(text)
    return match


def formats() -> list[str]:
    """Every format's name with its widths, such as ``pwlq2 to pwlq6``."""
    return list(core_file(NAMES).ranges())


def format_in_words(text: str) -> str:
    """A format with both widths, as its spec's label begins; torch is not loaded for it.

    Raises:
        ValueError: no such format.
    """
    return str(core_file(NAMES).in_words(text))


def weight_spec(text: str) -> QuantSpec:
    """The weights' grid from its name, such as ``pwlq4``.

    Raises:
        ValueError: no such format.
    """
    from zaq_plugin.pwlq import spec_from_name

    return spec_from_name(text)


def did_you_mean(word: str, known: Iterable[str], *form: str, most: int = 1) -> str:
    """`zaq_plugin.errors.did_you_mean`, for which torch is not loaded."""
    return str(core_file("errors").did_you_mean(word, known, *form, most=most))
