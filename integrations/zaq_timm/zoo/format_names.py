"""Names of weight formats as users type them (``pwlq4``); torch is loaded only for a spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaq_timm.zoo.light import core_file

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
