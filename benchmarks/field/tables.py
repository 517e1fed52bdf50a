"""The tables of the field benchmark: who is first at equal stored bits, and everything measured."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.data.subjects import TITLES, VALIDATION
from benchmarks.field.jobs import (
    BITS,
    BOTH,
    LITE,
    PEERS,
    Line,
    Row,
    is_peer,
    line_of,
    mean_seconds,
    rows_with,
)
from benchmarks.tables import Grid, Page, mean_and_deviation
from zaq_plugin.report.protocol import protocol_text
from zaq_plugin.strategies import STRATEGIES

INTRODUCTION = """Written by `python -m benchmarks.field --data DIR`. All layers are quantized
unless a row says otherwise, weights per output channel, activations per tensor, the network's own
input at 8 bits, residual additions in float; peers place their quantizers themselves. Every column
is a pair of **stored** weight bits and activation bits: PWLQ multiplies one bit narrower than it
stores. Means over seeds with their standard deviation; **first in its column**. Seconds are CPU
seconds of one thread, without synthetic images: those are made once for a model and shared by all
methods that have the same recipe. Rows that ran on a GPU or on another CPU (`machine` in the rows
tells) count in the scores and not in the seconds: many of them ran side by side."""
OLDER = """ On ResNet-20 `pwlq`, `gptq`
and `pwlq+gptq` at 4 bits of activations and fewer are of today. Other rows of PWLQ are older than
`overflow="pairs"`, which takes about 0.1 dB up to 4 MAC bits, `gptq`'s than its passes of today
(0.3 points at 4/4), and compositions of both at 4 bits of activations and fewer than clips of least
cubed error ([field_choice.md](field_choice.md)). On ImageNet's MobileNet `gptq` left five of 28
layers alone, which it no longer does."""
ERRORS = {"cifar10": 0.5, "imagenet": 2.5, "lite0": 1.7, "lite1": 1.7, "lite2": 1.7}
"""One standard error of a score, in points."""
AGREEMENT = """How many decisions (classes, pixels' classes) are the float model's; of a detector,
the F1 score of its boxes against the float model's (score 0.3 or more, one class, IoU 0.5 or more).
Both answer on the same images, so that chance has less of a say than in a score, and methods differ
in it where their scores are the float model's already."""
OURS = ("pwlq", "zaq")
PEER_NAMES = {
    "nncf": "NNCF",
    "torchao": "torchao PT2E",
    "aimet": "AIMET",
    "brevitas": "Brevitas",
    "mct": "MCT",
}


def method_name(line: Line) -> str:
    """A method in words."""
    method, levels, _ = line
    if is_peer(method):
        peer, _, recipe = method.partition("/")
        return f"{PEER_NAMES[peer]}, {recipe}"
    if levels == BOTH:
        return f"{method}, {BOTH}"
    if levels == "pwlq" and _base(method) != "pwlq":
        return f"{method}, PWLQ levels"
    return _plain(line)


def _plain(line: Line) -> str:
    method, levels, _ = line
    ours = _base(method) in OURS
    return f"{method}, uniform levels" if ours and levels == "uniform" else method


def _base(method: str) -> str:
    """The strategy that a composition starts from."""
    return method.split("+")[0]


def seconds_text(rows: Sequence[Row]) -> str:
    """Mean of the seconds that count; nothing if none do."""
    mean = mean_seconds(rows)
    return "" if mean is None else f"{mean:.0f}"


def order(line: Line) -> tuple[int, int, str, str]:
    """Strategies from the floor up, then compositions, then peers."""
    method, levels, _ = line
    base, names = _base(method), list(STRATEGIES)
    if is_peer(method):
        return 1, list(PEERS).index(method.split("/")[0]), method, levels
    return 0, names.index(base) if base in names else len(names), method, levels


def column_of(row: Row, by: str) -> str:
    """``W4A8`` by stored or by MAC bits."""
    activation = row["job"]["bits"].split("/")[1]
    if by == "mac_bits":
        activation = row.get("activation_mac_bits", activation)
    return f"W{round(row[by])}A{activation}"


def summary(rows: Iterable[Row], columns: Sequence[str], by: str, value: str = "score") -> Grid:
    """A line for each method, a column for each pair of widths, the best of each in bold.

    Args:
        rows: Of one model.
        columns: ``W4A8`` and the like.
        by: ``stored_bits`` or ``mac_bits``: which column a row belongs to.
        value: ``score`` or ``agreement``.
    """
    cells: dict[Line, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    counted: dict[Line, list[Row]] = defaultdict(list)
    for row in rows:
        column = column_of(row, by)
        if column in columns:
            cells[line_of(row)][column].append(row[value])
            counted[line_of(row)].append(row)
    best = {
        c: max((statistics.fmean(line[c]) for line in cells.values() if c in line), default=0.0)
        for c in columns
    }
    text = []
    for line in sorted(cells, key=order):
        shown = []
        for column in columns:
            values = cells[line].get(column)
            cell = mean_and_deviation(values or [])
            first = values and statistics.fmean(values) >= best[column] - 1e-9
            shown.append(f"**{cell}**" if first else cell)
        text.append([method_name(line), *shown, seconds_text(counted[line])])
    return Grid(["method", *columns, "seconds"], text)


def everything(rows: Sequence[Row]) -> tuple[Grid, list[str]]:
    """Every method and widths with MAC and stored bits, size, agreement, and footnotes."""
    groups: dict[tuple[Line, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[line_of(row), row["job"]["bits"]].append(row)
    marks: dict[str, str] = {}
    text = []
    for line, bits in sorted(groups, key=lambda k: (_widths(k[1]), order(k[0]), k[0][2])):
        part = groups[line, bits]
        one, activation = part[0], bits.split("/")[1]
        said = protocol_text({k: v for k, v in one.get("protocol", {}).items() if k != "seed"})
        said = "; ".join([said or "as in zero_shot.md", *_notes(part)])
        mark = marks.setdefault(said, str(len(marks) + 1))
        agreement = [r["agreement"] for r in part if r.get("agreement") is not None]
        size = one.get("stored_bytes")
        scores = [r["score"] for r in part]
        text.append(
            [
                f"{method_name(line)} [{mark}]",
                "real images" if line[2] == "real" else "data-free",
                f"{one['mac_bits']:g} / {one['stored_bits']:g}",
                f"{one.get('activation_mac_bits', activation)} / {activation}",
                "" if size is None else f"{size / 1000:,.1f}",
                mean_and_deviation(scores),
                f"{statistics.fmean(scores) - one['fp32']:+.2f}",
                mean_and_deviation(agreement),
                ", ".join(str(r["job"]["seed"]) for r in sorted(part, key=_seed)),
                seconds_text(part),
            ]
        )
    heads = ["method", "data", "weight bits, MAC / stored", "activation bits, MAC / stored"]
    heads += ["size, kB", rows[0]["metric"] + ", %", "vs FP32", "agreement, %", "seeds", "seconds"]
    return Grid(heads, text, "llr"), [f"[{mark}] {said}." for said, mark in marks.items()]


def _seed(row: Row) -> int:
    return int(row["job"]["seed"])


def _notes(part: Sequence[Row]) -> list[str]:
    """What all rows of a group note."""
    left = part[0].get("float_layers") or []
    notes = [n for n in part[0].get("notes", []) if all(n in r.get("notes", []) for r in part)]
    effort = part[0]["job"]["effort"]
    if effort != 1:
        notes.append(f"{effort:g} of the steps of distillation and training")
    if left:
        notes.append(f"{len(left)} layers stay float: {', '.join(left[:4])}")
    return notes


def _widths(bits: str) -> tuple[int, int]:
    weight, activation = bits.split("/")
    return -int(weight), -int(activation)


def failed(rows: Sequence[Row]) -> list[Row]:
    """Rows without a result, of which no other run (with less effort, say) has one either."""
    done = {_asked(row) for row in rows if "error" not in row}
    return [row for row in rows if "error" in row and _asked(row) not in done]


def _asked(row: Row) -> tuple[str, ...]:
    return tuple(row["job"][part] for part in ("model", "method", "bits", "images", "levels"))


def failures(rows: Iterable[Row]) -> Grid:
    """What could not be run, and why, once for each method and reason."""
    groups: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for row in rows:
        of = row["job"]
        groups[of["model"], of["method"], row["error"]].add(of["bits"])
    text = [
        [method_name((method, "uniform", "")), TITLES[model], ", ".join(sorted(bits)), reason]
        for (model, method, reason), bits in sorted(groups.items())
    ]
    return Grid(["method", "model", "bits", "why not"], text, "l")


def page(rows: Sequence[Row]) -> Page:
    """The whole page."""
    good = [row for row in rows if "error" not in row]
    older = any(row["job"]["model"].removesuffix(VALIDATION) not in LITE for row in good)
    introduction = INTRODUCTION + (OLDER if older else "")
    document = Page("The field: every method on the same weights and images", [introduction])
    for model in (m for m in BITS if any(r["job"]["model"] == m for r in good)):
        mine = [row for row in good if row["job"]["model"] == model]
        columns = [f"W{w}A{a}" for w, a in (bits.split("/") for bits in BITS[model])]
        metric, fp32 = mine[0]["metric"], mine[0]["fp32"]
        document.parts.append((2, f"{TITLES[model]}: {metric} {fp32:.2f} % in float"))
        if model in ERRORS:
            document.parts.append(f"One standard error of a score is about {ERRORS[model]} points.")
        views: tuple[tuple[str, Callable[[Row], bool]], ...] = (
            ("Data-free", lambda r: r["data"] != "real"),
            ("Calibrated on real images", lambda r: r["data"] == "real"),
        )
        for title, chosen in views:
            part = [row for row in mine if chosen(row)]
            if not part:
                continue
            document.parts += [(3, f"{title}, equal stored bits ({metric}, %)")]
            document.parts.append(summary(part, columns, "stored_bits"))
            document.parts += [(3, f"{title}, equal MAC bits ({metric}, %)")]
            document.parts.append(summary(part, columns, "mac_bits"))
            part = [row for row in part if row.get("agreement") is not None]
            if part:
                heading = f"{title}: agreement with the float model, equal stored bits (%)"
                document.parts += [(3, heading), AGREEMENT]
                document.parts.append(summary(part, columns, "stored_bits", "agreement"))
        table, notes = everything(mine)
        document.parts += [(3, "All rows"), table, "\n".join(f"{note}  " for note in notes)]
    bad = failed(rows)
    if bad:
        document.parts += [(2, "What could not be run"), failures(bad)]
    return document


def write_tables(rows: Sequence[Row], out: Path, also: Path | None = None) -> None:
    """Write the Markdown and the HTML page beside the rows."""
    every = rows_with(rows, also)
    if not every:
        return
    document = page(every)
    out.with_suffix(".md").write_text(document.markdown())
    out.with_suffix(".html").write_text(document.html())
