"""The tables of `benchmarks.runtimes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.tables import table

NETWORKS = {
    "digits": "digits",
    "resnet18": "resnet18",
    "mobilenetv2_050": "mobilenet",
    "vit_tiny": "ViT",
}
FORMS = {"float": "float", "int8": "int8", "packed4": "packed, 4 bits", "packed5": "packed, 5 bits"}
BEGIN, END = "<!-- runtimes: begin -->", "<!-- runtimes: end -->"
Row = dict[str, Any]


def newest(rows: list[Row]) -> dict[tuple[str, str, str], Row]:
    """The last row of each runtime, network and form."""
    return {(row["runtime"], row["network"], row["form"]): row for row in rows}


def markdown(rows: list[Row]) -> str:
    """Tables and the messages of what failed."""
    last = newest(rows)
    names = list(dict.fromkeys(row["runtime"] for row in rows))
    networks = [name for name in NETWORKS if any(row["network"] == name for row in rows)]
    vnni = {row["vnni"] for row in last.values()}
    kind = {True: "with", False: "without"}.get(vnni.pop()) if len(vnni) == 1 else None
    parts = [
        f"Networks: {', '.join(networks)}. x86-64 processor"
        + (f" {kind} VNNI" if kind else "")
        + "; one thread, a batch of one, the least of a "
        "few runs on a busy machine: latencies are rough. All networks "
        "but the digits have random weights, 64 x 64 pixels, 16 classes and scrambled BatchNorm: "
        "they amplify one rounding to several steps, in whatever runtime. A cell that names "
        "networks says nothing of the others.",
        _grid(
            ["runtime", "version", *FORMS.values()],
            [
                [f"`{name}`", _version(last, name)]
                + [_cell(last, name, networks, f) for f in FORMS]
                for name in names
            ],
        ),
        "**yes**: the answer is that of the file's own operators run one by one, within what one "
        "rounding moves; else what goes wrong, and with which networks.",
        "### What they multiply in, and how far the answer is",
        "Layers of the int8 file on integer kernels, of all that the runtime tells about; distance "
        "from the file's own operators run one by one, in 255ths of the range of the outputs.",
        _grid(
            ["runtime"]
            + [f"{NETWORKS[n]}: {what}" for n in networks for what in ("layers", "off")],
            [
                [f"`{name}`"]
                + [text for n in networks for text in _inside(last.get((name, n, "int8")))]
                for name in names
            ],
        ),
        "### Latency",
        "Of the int8 file as a multiple of the float file's in the same runtime (and its "
        "milliseconds); below 1 it is faster. Packed files run as int8 files do where they are "
        "folded at load; the last column has their worst.",
        _grid(
            ["runtime", *(NETWORKS[n] for n in networks), "packed to int8, worst"],
            [
                [f"`{name}`"]
                + [_latency(last.get((name, n, "int8"))) for n in networks]
                + [_packed(last, name, networks)]
                for name in names
            ],
        ),
        "### Size and loading",
        "Bytes of the files, and how long `onnxruntime` and `openvino` take to load them.",
        _grid(["network", *FORMS.values()], [_sizes(last, n) for n in networks]),
    ]
    failures = _failures(last)
    if failures:
        parts += ["### What they say where they fail", "\n".join(failures)]
    return "\n\n".join(parts) + "\n"


def put_between_markers(page: Path, text: str) -> None:
    """Replace the generated part of a page.

    Raises:
        ValueError: the page has no markers.
    """
    whole = page.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: no line {BEGIN} with a line {END} behind it.")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def _grid(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(table(heads, rows, "l"))


def _version(last: dict[tuple[str, str, str], Row], name: str) -> str:
    return ", ".join(dict.fromkeys(row["version"] for (r, *_), row in last.items() if r == name))


def _cell(last: dict[tuple[str, str, str], Row], name: str, networks: list[str], form: str) -> str:
    rows = {n: last[name, n, form] for n in networks if (name, n, form) in last}
    if not rows:
        return "not measured"
    states: dict[str, list[str]] = {}
    for n, row in rows.items():
        state = "yes" if row["state"] == "right" else f"no, {row['state']}"
        states.setdefault(state, []).append(NETWORKS[n])
    if len(states) == 1 and len(rows) == len(networks):
        (only,) = states
        return "**yes**" if only == "yes" else only
    return "; ".join(f"{state} ({', '.join(of)})" for state, of in states.items())


def _inside(row: Row | None) -> tuple[str, str]:
    if row is None or row["state"] not in ("right", "wrong"):
        return "-", "-"
    total = row["integer_layers"] + row["float_layers"]
    layers = f"{row['integer_layers']} of {total}" if total else "not told"
    return layers, f"{row['steps']:.2f}"


def _latency(row: Row | None) -> str:
    if row is None or row["milliseconds"] is None or row["state"] not in ("right", "wrong"):
        return "-"
    own = f"{row['milliseconds']:.3g} ms"
    if not row.get("float_milliseconds"):
        return f"({own})"
    return f"{row['milliseconds'] / row['float_milliseconds']:.2f} ({own})"


def _packed(last: dict[tuple[str, str, str], Row], name: str, networks: list[str]) -> str:
    ratios = []
    for n in networks:
        whole = last.get((name, n, "int8"))
        for form in ("packed4", "packed5"):
            row = last.get((name, n, form))
            if whole and row and whole.get("milliseconds") and row.get("milliseconds"):
                ratios.append(row["milliseconds"] / whole["milliseconds"])
    return f"{max(ratios):.2f}" if ratios else "-"


def _sizes(last: dict[tuple[str, str, str], Row], network: str) -> list[str]:
    cells = []
    for form in FORMS:
        rows = [last.get((name, network, form)) for name in ("onnxruntime", "openvino")]
        there = [row for row in rows if row]
        loads = " / ".join(f"{1000 * row['load_seconds']:.0f}" for row in there)
        cells.append(f"{there[0]['bytes'] / 1000:,.1f} kB, {loads} ms" if there else "-")
    return [NETWORKS[network], *cells]


def _failures(last: dict[tuple[str, str, str], Row]) -> list[str]:
    said: dict[tuple[str, str], list[str]] = {}
    for (name, network, form), row in last.items():
        text = row["message"]
        if row["state"] == "wrong":
            text = f"off by {row['steps']:.1f} steps"
        if row["state"] != "right":
            said.setdefault((name, text), []).append(f"{NETWORKS[network]} {FORMS[form]}")
    return [
        f"- `{name}`, {'; '.join(of)}: {text.replace('|', ' ').replace('<', '&lt;')}"
        for (name, text), of in said.items()
    ]
