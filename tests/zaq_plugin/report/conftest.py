"""Reads a plot's data back out of its SVG: pixels to numbers, by the labelled ticks."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import numpy as np
import pytest

SVG = "{http://www.w3.org/2000/svg}"


class Plot:
    """One panel of an SVG, measured in its own axes' units."""

    def __init__(self, svg: str, panel: int = 1) -> None:
        self.root = ElementTree.fromstring(svg)
        self.axes = self._group(f"axes_{panel}")

    def _group(self, name: str, inside: ElementTree.Element | None = None) -> ElementTree.Element:
        for group in (self.root if inside is None else inside).iter(f"{SVG}g"):
            if group.get("id") == name:
                return group
        raise AssertionError(f"the SVG has no group '{name}'")

    def _scale(self, letter: str) -> Callable[[np.ndarray], np.ndarray]:
        pixels, values = [], []
        for group in self.axes.iter(f"{SVG}g"):
            if re.fullmatch(rf"{letter}tick_\d+", group.get("id") or ""):
                texts = ["".join(t.itertext()).strip() for t in group.iter(f"{SVG}text")]
                place = re.match(r"M (\S+) (\S+)", next(group.iter(f"{SVG}path")).get("d") or "")
                if texts and texts[0] and place:
                    pixels.append(float(place["xy".index(letter) + 1]))
                    values.append(float(texts[0].replace("−", "-")))
        assert len(values) >= 2, f"fewer than two labelled ticks along {letter}"
        slope, offset = np.polyfit(pixels, values, 1)
        assert np.allclose(slope * np.array(pixels) + offset, values, atol=1e-6 + 1e-4 * abs(slope))
        return lambda x: slope * np.asarray(x) + offset

    def line(self, gid: str) -> np.ndarray:
        """(points, 2): a line's data, from its path or from its markers."""
        group = self._group(gid, self.axes)
        path = next((p.get("d") for p in group.findall(f"{SVG}path")), None)
        if path:
            numbers = re.findall(r"[ML] (\S+) (\S+)", path)
        else:
            numbers = [(str(u.get("x")), str(u.get("y"))) for u in group.iter(f"{SVG}use")]
        points = np.array(numbers, dtype=float)
        return np.stack([self._scale("x")(points[:, 0]), self._scale("y")(points[:, 1])], 1)

    def xs(self, gid: str) -> np.ndarray:
        """x of the separate vertical lines of one group, in order."""
        positions = []
        for path in self._group(gid, self.axes).iter(f"{SVG}path"):
            positions += [float(x) for x in re.findall(r"M (\S+) ", path.get("d") or "")]
        return np.sort(self._scale("x")(np.array(positions)))

    def texts(self) -> list[str]:
        """All text of the SVG."""
        return ["".join(t.itertext()).strip() for t in self.root.iter(f"{SVG}text")]


@pytest.fixture
def read_plot() -> type[Plot]:
    return Plot
