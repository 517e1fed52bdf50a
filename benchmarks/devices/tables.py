"""The page of the rows of `benchmarks.devices`."""

from __future__ import annotations

from typing import Any

from benchmarks.data.subjects import TITLES
from benchmarks.tables import table

Row = dict[str, Any]

ORDER = ("float", "stock 8/8", "ours 8/8", "ours 5/8", "ours 4/8")
LIMIT = 1.02
"""What we aim at: our latency as a share of the tool's own int8."""
LEAD = """# Files for devices

Made by `benchmarks.devices`. Bits are stored bits of a weight / bits of an activation; a
PWLQ weight of 5 stored bits has 4 MAC bits, one of 4 has 3; every file holds int8 weights, which is
what the kernels multiply by. *stock* is the tool's own quantizer, W8A8. All calibrate on the same
images, made without data; ours gives the outputs' grid twice the range that made images have there,
the stock quantizers end it where these images do, and clip what real images give beyond. Score and
agreement with the float model are of the file, on images that calibrated nothing; one seed, so no
spread: with 1,000 images a difference of a point is within chance. Zipped is deflate. Latency: one
thread, one image, medians of 100, the files taking turns, on a machine with other work on it
(x86-64 with VNNI); the ratios say more than the times.
"""


def tables(rows: list[Row]) -> str:
    """The page."""
    parts = [LEAD]
    for tool, task in dict.fromkeys((row["tool"], row["task"]) for row in rows):
        own = [row for row in rows if (row["tool"], row["task"]) == (tool, task)]
        times: dict[str, float] = next((row["ms"] for row in own if row["kind"] == "latency"), {})
        refused = [row for row in own if "refused" in row]
        own = [row for row in own if row["kind"] != "latency" and row not in refused]
        own.sort(key=lambda row: ORDER.index(row["kind"]))
        first = own[0]
        parts.append(
            f"\n## {TITLES[task]} in {first['versions']}\n\n{first['images']} images, float "
            f"{first['metric']} {first['float_score']:.1f} %\n\n"
        )
        heads = ["file", "kB", "zipped", "of stock, zipped", f"{first['metric']} %", "agreement %"]
        heads += ["ms", "of stock", "verified"]
        stock = next((row for row in own if row["kind"].startswith("stock")), None)
        lines = table(heads, [_cells(row, stock, times) for row in own], "l")
        parts.append("\n".join(lines) + "\n")
        parts += [f"\n{row['kind']}: the tool refuses, {row['refused']}\n" for row in refused]
    return "".join(parts)


def _cells(row: Row, stock: Row | None, times: dict[str, float]) -> list[str]:
    ms = times.get(row["kind"])
    base = times.get(stock["kind"]) if stock else None
    share = None if ms is None or not base else ms / base
    late = " (!)" if share is not None and share > LIMIT and row["kind"].startswith("ours") else ""
    zipped = row["zipped"] / stock["zipped"] if stock else None
    verified = {None: "–", True: "yes", False: "**no**"}[row["verified"]]
    cells = [row["kind"], f"{row['bytes'] / 1000:,.0f}", f"{row['zipped'] / 1000:,.0f}"]
    cells += [_number(zipped), f"{row['score']:.1f}", f"{row['agreement']:.1f}", _number(ms)]
    return [*cells, _number(share) + late, verified]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
