"""The tables of the guide, of the README and of the field's findings, from the field's rows.

    python -m benchmarks.field.guide

Writes each table anew between its marks, ``<!-- table: field, NAME -->`` and
``<!-- end of table -->``.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.field.jobs import BITS, BOTH, Row, mean_seconds, rows_with
from benchmarks.rows import RESULTS, command_line, read_rows
from benchmarks.tables import table

NEEDS = """Needs the committed rows alone. Takes seconds."""

ROOT = RESULTS.parents[1]
PAGES = (
    ROOT / "docs" / "which_method.md",
    ROOT / "README.md",
    RESULTS / "field_findings.md",
)
ROWS = ("field.jsonl", "field_lite.jsonl")
WALL = ("zaq", "zaq-paper")
"""Methods whose rows come from the zero-shot benchmark, with wall time."""
DENSE = ("coco", "camvid", "imagenet")
SHORT = {"coco": "COCO", "camvid": "CamVid", "imagenet": "ImageNet"}
NETWORKS = (
    ("ResNet-20", "cifar10", ("4/8", "4/4", "3/3")),
    ("MobileNetV1-0.25", "imagenet", ("8/8", "4/8")),
    ("EfficientNet-Lite0", "lite0", ("8/8", "5/8", "4/8", "4/4")),
    ("ESPNet", "camvid", ("4/8",)),
    ("FastestDet", "coco", ("4/8",)),
)
"""The columns of the table that compares networks."""


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        title: As it stands in the table.
        method: Of the rows.
        levels: ``uniform``, ``pwlq``, or `BOTH`.
        real: Whether it calibrates on real images.
        images: How many images, in words.
    """

    title: str
    method: str
    levels: str = "uniform"
    real: bool = False
    images: str = "none"

    def rows(self, rows: Sequence[Row], model: str, bits: str) -> list[Row]:
        """Its rows of a column."""
        return [
            r
            for r in rows
            if (r["job"]["model"], r["job"]["method"]) == (model, self.method)
            and r["job"]["bits"] == bits
            and r["levels"] == self.levels
            and (r["data"] == "real") == self.real
        ]


def _real(title: str, method: str, levels: str = "uniform", images: str = "512 images") -> Line:
    return Line(title, method, levels, True, images)


FREE = (
    Line("`rq` (min-max)", "rq"),
    Line("`omse`", "omse"),
    Line("`lbq` (4.4 and 3.3 stored bits at 4 and 3)", "lbq"),
    Line("`aciq`", "aciq"),
    Line("`dfq`", "dfq"),
    Line("`zeroq`", "zeroq"),
    Line("`zeroq-mp` (mixed precision, mean bits)", "zeroq-mp"),
    Line("`rq+bias-correction`", "rq+bias-correction"),
    Line("`omse+bias-correction`", "omse+bias-correction"),
    Line("`pwlq@uniform` (bias correction, no PWLQ)", "pwlq"),
    Line("**`pwlq`**", "pwlq", "pwlq"),
    Line("**`pwlq+mse-activations`**", "pwlq+mse-activations", "pwlq"),
    Line("`gptq` (uniform levels)", "gptq"),
    Line("**`pwlq+gptq`**", "pwlq+gptq", "pwlq"),
    Line("`pwlq+gptq+top-k`", "pwlq+gptq+top-k", "pwlq"),
    Line("`pwlq+gptq+cube-activations`", "pwlq+gptq+cube-activations", "pwlq"),
    Line("`pwlq+gptq+mse-activations`", "pwlq+gptq+mse-activations", "pwlq"),
    Line("`deepinversion`", "deepinversion"),
    Line("`gdfq`", "gdfq"),
    Line("`adaround`", "adaround"),
    Line("`brecq`", "brecq"),
    Line("`qdrop`", "qdrop"),
    Line("`zaq-paper`", "zaq-paper"),
    Line("**`zaq`**, uniform levels", "zaq"),
    Line("**`zaq`**, PWLQ weights", "zaq", "pwlq"),
    Line("**`zaq`**, PWLQ weights and activations", "zaq", BOTH),
)
PEERS = (
    _real("torchao PT2E, its default", "torchao/plain"),
    _real("torchao PT2E, histograms", "torchao/best"),
    _real("NNCF, its default", "nncf/plain"),
    _real("NNCF, mixed preset, bias correction", "nncf/best"),
    _real("MCT, PTQ", "mct/plain"),
    _real("MCT, gradient-based rounding (its GPTQ)", "mct/best"),
    _real("AIMET, min-max", "aimet/plain"),
    _real("AIMET, equalization, AdaRound", "aimet/best"),
    _real("Brevitas, percentile", "brevitas/plain"),
    _real("Brevitas, GPTQ, bias correction", "brevitas/best"),
)
PEERS_FREE = tuple(Line(line.title, line.method) for line in PEERS)
"""The same where a network has no images that may calibrate."""
REAL = (
    _real("`rq` (min-max)", "rq"),
    _real("**`pwlq`**", "pwlq", "pwlq"),
    _real("`gptq` (uniform levels)", "gptq"),
    _real("**`pwlq+gptq`**", "pwlq+gptq", "pwlq"),
    _real("`adaround`", "adaround"),
    _real("`brecq`", "brecq"),
    _real("`qdrop`", "qdrop"),
    _real("`ft`", "ft", "pwlq"),
    _real("**`zaq`**, uniform levels", "zaq", images="2,000 images"),
    _real("**`zaq`**, PWLQ weights", "zaq", "pwlq", "2,000 images"),
    *PEERS,
)
FAITHFUL = ("pwlq", "gptq", "pwlq+gptq", "brecq", "qdrop", "zaq")
"""Strategies whose agreement the guide shows, beside the tools' best recipes."""


def cell(rows: Sequence[Row], value: str = "score") -> str:
    """The mean over seeds, or nothing."""
    values = [r[value] for r in rows if r.get(value) is not None]
    return f"{statistics.fmean(values):.2f}" if values else ""


def seeds_of(rows: Sequence[Row]) -> str:
    """``3``, or ``1 to 3`` where columns differ."""
    count: dict[str, int] = {}
    for row in rows:
        count[row["job"]["bits"]] = count.get(row["job"]["bits"], 0) + 1
    low, high = min(count.values()), max(count.values())
    return str(high) if low == high else f"{low} to {high}"


def seconds_of(line: Line, rows: Sequence[Row]) -> str:
    """Mean of the seconds that count; wall time says so."""
    mean = mean_seconds(rows)
    if mean is None:
        return ""
    if line.method in WALL:
        return f"about {round(mean, -1):.0f} (wall)"
    return "under 1" if mean < 0.5 else f"{mean:.0f}"


def cifar10(rows: Sequence[Row]) -> list[str]:
    """Every method on CIFAR-10: all widths, seeds and seconds."""
    columns = BITS["cifar10"]
    text = []
    for line in (*FREE, *REAL):
        of = [line.rows(rows, "cifar10", bits) for bits in columns]
        every = [row for part in of for row in part]
        if every:
            last = seeds_of(every), seconds_of(line, every)
            text.append([line.title, line.images, *map(cell, of), *last])
    return table(["method", "data", *columns, "seeds", "seconds"], text, "llr")


def agreement(rows: Sequence[Row]) -> list[str]:
    """The same by agreement, for the methods that one would choose from."""
    columns = BITS["cifar10"]
    text = []
    for line in (*FREE, *REAL):
        cells = [cell(line.rows(rows, "cifar10", bits), "agreement") for bits in columns]
        if _chosen(line) and any(cells):
            text.append([line.title, line.images, *cells])
    return table(["method", "data", *columns], text, "llr")


def _chosen(line: Line) -> bool:
    return line.method in FAITHFUL or line.method.endswith("/best")


def dense(rows: Sequence[Row]) -> list[str]:
    """Detection, segmentation and ImageNet, all data-free."""
    models = [model for model in DENSE for _ in BITS[model]]
    floats = [next(r["fp32"] for r in rows if r["job"]["model"] == m) for m in models]
    first = ["float", *(f"{value:.2f}" for value in floats)]
    return _dense(rows, "score", first=[first])


def dense_agreement(rows: Sequence[Row]) -> list[str]:
    """The same by agreement, for the methods that one would choose from."""
    return _dense(rows, "agreement", _chosen)


def _dense(
    rows: Sequence[Row],
    value: str,
    chosen: Callable[[Line], bool] = lambda line: True,
    first: Sequence[list[str]] = (),
) -> list[str]:
    columns = [(model, bits) for model in DENSE for bits in BITS[model]]
    heads = [f"{SHORT[m]} {b}" if b == BITS[m][0] else b for m, b in columns]
    text = list(first)
    for line in (*FREE, *PEERS_FREE):
        cells = [cell(line.rows(rows, *column), value) for column in columns]
        if chosen(line) and any(cells):
            text.append([line.title, *cells])
    return table(["method", *heads], text)


TOOLS = (
    (Line("**`pwlq+gptq`**", "pwlq+gptq", "pwlq"), "PWLQ weights, error feedback, biases"),
    (Line("**`zaq`**", "zaq"), "uniform levels"),
    (Line("**`zaq`**", "zaq", BOTH), "PWLQ weights and activations"),
    (_real("AIMET", "aimet/best"), "equalization, AdaRound"),
    (_real("Brevitas", "brevitas/best"), "GPTQ, bias correction"),
    (_real("MCT", "mct/best"), "gradient-based rounding (its GPTQ)"),
    (_real("torchao PT2E", "torchao/best"), "histogram observers"),
    (_real("NNCF", "nncf/best"), "mixed preset, bias correction"),
)


def tools(rows: Sequence[Row]) -> list[str]:
    """The README's: ours without data, the other tools with it; score and agreement."""
    columns = ("4/8", "4/4", "3/3", "2/4")
    text = []
    for line, recipe in TOOLS:
        of = [line.rows(rows, "cifar10", bits) for bits in columns]
        cells = [f"{cell(part)} / {cell(part, 'agreement')}" if part else "–" for part in of]
        every = [row for part in of for row in part]
        if not every:
            continue
        count = "512" if line.real else "0"
        text.append([line.title, recipe, count, seeds_of(every), *cells])
    return table(["tool", "recipe", "real images", "seeds", *columns], text, "llr")


def networks(rows: Sequence[Row]) -> list[str]:
    """Agreement with the float model without data, on every network, of what one may choose."""
    columns = [(model, bits) for _, model, widths in NETWORKS for bits in widths]
    heads = [
        f"{title} {bits}" if bits == widths[0] else bits
        for title, _, widths in NETWORKS
        for bits in widths
    ]
    text = []
    for line in (*FREE, *PEERS_FREE):
        cells = [cell(line.rows(rows, *column), "agreement") for column in columns]
        if (_chosen(line) or line.method == "rq") and any(cells):
            text.append([line.title, *cells])
    return table(["method", *heads], text)


def lite0(rows: Sequence[Row]) -> list[str]:
    """EfficientNet-Lite0: agreement and top-1 of everything that was measured, without data."""
    columns = BITS["lite0"]
    text = []
    for line in (*FREE, *PEERS_FREE):
        of = [line.rows(rows, "lite0", bits) for bits in columns]
        every = [row for part in of for row in part]
        if every:
            cells = [f"{cell(p, 'agreement')} / {cell(p)}" if p else "" for p in of]
            text.append([line.title, *cells, seeds_of(every), seconds_of(line, every)])
    return table(["method", *columns, "seeds", "seconds"], text)


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "cifar10": cifar10,
    "cifar10 agreement": agreement,
    "dense": dense,
    "dense agreement": dense_agreement,
    "tools": tools,
    "networks": networks,
    "lite0": lite0,
}


def filled(text: str, rows: Sequence[Row]) -> str:
    """A page with its tables made anew.

    Raises:
        ValueError: If a mark names a table that does not exist.
    """

    def anew(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; known are {', '.join(TABLES)}")
        return "\n".join([match[1], "", *TABLES[name](rows), "", match[3]])

    marks = r"(<!-- table: field, ([^>]*) -->).*?(<!-- end of table -->)"
    return re.sub(marks, anew, text, flags=re.DOTALL)


def guide_rows() -> list[Row]:
    """The rows that the tables are made of."""
    rows = [row for name in ROWS for row in read_rows(RESULTS / name)]
    every = rows_with(rows, RESULTS / "zero_shot.jsonl")
    return [row for row in every if "error" not in row]


def main() -> None:
    """Write the pages."""
    command_line(__doc__, NEEDS).parse_args()
    rows = guide_rows()
    for page in PAGES:
        page.write_text(filled(page.read_text(), rows))


if __name__ == "__main__":
    main()
