"""Words of errors: what tools raise in our own sentences, and what may have been meant.

Loads the standard library alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def in_short(error: BaseException) -> str:
    """An error of a tool in one line of at most 400 characters, its kind first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return f"{type(error).__name__}: {text}"[:400]


def did_you_mean(
    word: str,
    known: Iterable[str],
    form: str = " Did you mean {!r}?",
    *,
    most: int = 1,
    cutoff: float = 0.6,
) -> str:
    """A hint to the nearest of what is known; empty if nothing is near.

    Args:
        word: What was typed.
        known: What there is.
        form: The hint, with a place for the name.
        most: So many names, joined by "or".
        cutoff: How near, from 0 to 1.
    """
    near = difflib.get_close_matches(word, list(dict.fromkeys(known)), n=most, cutoff=cutoff)
    return form.format(" or ".join(near)) if near else ""
