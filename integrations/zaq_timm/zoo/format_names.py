"""Names of weight formats as users type them (``pwlq4``); torch is loaded only for a spec."""

from __future__ import annotations

import functools
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zaq_plugin.pwlq import QuantSpec


@functools.cache
def _names() -> ModuleType:
    """The project's table of formats, by itself: its package would load torch."""
    package = util.find_spec("zaq_plugin")  # of a package at the top, which this does not import
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "pwlq" / "names.py"
    spec = util.spec_from_file_location("zaq_format_names", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_format(text: str) -> tuple[str, int]:
    """Name and width of a format, such as ``pwlq4``: see `zaq_plugin.pwlq.names`.

    Raises:
        ValueError: no such format.
    """
    match: tuple[str, int] = _names().split_name(text)
    return match


def format_in_words(text: str) -> str:
    """A format with both widths, as its spec's label begins; torch is not loaded for it.

    Raises:
        ValueError: no such format.
    """
    return str(_names().in_words(text))


def weight_spec(text: str) -> QuantSpec:
    """The weights' grid from its name, such as ``pwlq4``.

    Raises:
        ValueError: no such format.
    """
    from zaq_plugin.pwlq import spec_from_name

    return spec_from_name(text)
