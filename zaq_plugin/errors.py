"""What tools raise, told in our own sentences."""

from __future__ import annotations


def in_short(error: BaseException) -> str:
    """An error of a tool in one line of at most 400 characters, its kind first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return f"{type(error).__name__}: {text}"[:400]
