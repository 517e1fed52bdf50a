"""Tables of `benchmarks.deploy`."""

from __future__ import annotations

import platform
from typing import Any

import onnxruntime
import torch

from benchmarks.tables import table

LIMITS = {"4": 0.55, "5": 0.67, "load": 1.5, "latency": 1.02}
"""What we aim at, as shares of int8."""

Row = dict[str, Any]


SIZES = (
    "\nWhat a packed file cannot go below: every weight takes its stored bits; layers of depthwise "
    "convolutions are too small to gain and stay int8; and every channel has eight bytes of scale "
    "and bias, as in the int8 file, and 4.5 bytes of codebook, 5.5 with a reduced range. In "
    "imagenet these alone are 0.55 of the int8 file at 4 bits and 0.66 at 5, before any operator, "
    "name or zero point."
)
FLOORS = (
    "An int8 weight is read as it is. A packed one is made when the file is loaded, and what makes "
    "it must be standard operators that both runtimes fold. The table shows what the simplest "
    "chains cost in a file of resnet18's weights, as shares of the int8 file's load: none of them "
    "has codebooks yet. ONNX Runtime folds operator by operator and keeps every result until it is "
    "done, so that a pass costs its own time and that of fresh memory. Within 1.5 there is room "
    "for a Cast and for one more operator in 8 bits. The only fast ones in 8 bits are Cast and "
    "Clip, which cannot tell channels apart; bitwise operators take 0.8 ns a byte, Where 4.7. One "
    "pass in 32 bits is beyond 1.5, and an index is 32 bits. What we do, a Gather of pairs from "
    "each channel's table, takes 9 ns a pair, whatever the row's length; GatherND is no faster; "
    "GatherElements takes 1.2 ns a weight, but OpenVINO does not fold it.\n"
)
UNPACKING = (
    "\nA file that is loaded often is better unpacked once, where it is installed: "
    "`zaq_onnx.unpack(packed, int8)` or `python -m zaq_onnx unpack packed int8` restores the int8 "
    "file bit for bit, and checks it. Time in ms, once, and what each load takes from then on:\n"
)
SATURATION = (
    "This processor has no VNNI: its int8 kernels add two products in 16 bits, which saturate, in "
    "ONNX Runtime and in OpenVINO. Files here were exported with `reduce_range=True`, which puts "
    "the channels concerned on slightly coarser grids; `whole range` is the same model exported "
    "without, as it suits processors with VNNI. Operator by operator is ONNX Runtime without its "
    "optimizations, in float.\n"
)


def _ratio(value: float, limit: float) -> str:
    return f"{value:.2f}" + ("" if round(value, 2) <= limit else " (!)")


def sizes(rows: list[Row]) -> str:
    """File sizes in kB."""
    heads = ["network", "FP32", "stock int8", "int8", "packed, 4 stored bits", "of int8"]
    heads += ["packed, 5 stored bits", "of int8"]
    lines = []
    for row in rows:
        size = {k: v / 1000 for k, v in row["bytes"].items()}
        stock = f"{size['stock']:,.0f}" if "stock" in size else "–"
        four, five = (size[f"packed{s}"] / size[f"int8_{s}"] for s in (4, 5))
        cells = [row["name"], f"{size['fp32']:,.0f}", stock, f"{size['int8_5']:,.0f}"]
        cells += [f"{size['packed4']:,.0f}", _ratio(four, LIMITS["4"])]
        lines.append([*cells, f"{size['packed5']:,.0f}", _ratio(five, LIMITS["5"])])
    return "\n".join(table(heads, lines))


def _number(values: dict[str, float], key: str, digits: int) -> str:
    return f"{values[key]:,.{digits}f}" if key in values else "–"


def _share(values: dict[str, float], key: str, other: str, limit: float) -> str:
    if key not in values or other not in values:
        return "–"
    return _ratio(values[key] / values[other], limit)


def speeds(rows: list[Row], runtime: str) -> str:
    """Latency and load time in milliseconds under one runtime."""
    heads = ["network", "FP32", "stock int8", "ours, int8", "ours, packed (5)", "packed / stock"]
    heads += ["load FP32", "load int8", "load packed (4)", "/ int8", "load packed (5)", "/ int8"]
    lines = []
    for row in rows:
        took = {k: 1000 * v for k, v in row[f"{runtime}_latency"].items()}
        load = {k: 1000 * v for k, v in row[f"{runtime}_load"].items()}
        cells = [_number(took, k, 2) for k in ("fp32", "stock", "int8_5", "packed5")]
        cells.append(_share(took, "packed5", "stock", LIMITS["latency"]))
        cells += [_number(load, k, 0) for k in ("fp32", "int8_5")]
        for stored in (4, 5):
            cells.append(_number(load, f"packed{stored}", 0))
            cells.append(_share(load, f"packed{stored}", f"int8_{stored}", LIMITS["load"]))
        lines.append([row["name"], *cells])
    return "\n".join(table(heads, lines))


def equality(rows: list[Row]) -> str:
    """What is the same between int8 and packed files."""
    heads = ["network", "layers in integers / in float", "optimized graph identical"]
    heads += ["outputs identical, ONNX Runtime", "outputs identical, OpenVINO"]
    lines = []
    for row in rows:
        answers = [
            ("yes" if all(row[key].values()) else "no") if row[key] else "–"
            for key in ("same_graph", "ort_same", "openvino_same")
        ]
        lines.append([row["name"], f"{row['layers'][0]} / {row['layers'][1]}", *answers])
    return "\n".join(table(heads, lines, "lrl"))


COLUMNS = (
    "converted",
    "operators",
    "ort",
    "openvino",
    "ort_whole",
    "openvino_whole",
    "ort_stock",
    "openvino_stock",
)


def accuracies(rows: list[Row]) -> str:
    """Top-1 of the packed file against the converted model, and without a reduced range."""
    heads = ["network", "images", "stored bits", "FP32", "converted, torch"]
    heads += ["packed, operator by operator", "packed, ONNX Runtime", "packed, OpenVINO"]
    heads += ["whole range, ONNX Runtime", "whole range, OpenVINO"]
    heads += ["stock int8, ONNX Runtime", "stock int8, OpenVINO"]
    lines = []
    for row in rows:
        for stored in ("4", "5") if "fp32_accuracy" in row else ():
            tops = [row.get(f"{k}_accuracy", {}) for k in COLUMNS]
            cells = [row["fp32_accuracy"], *(k.get(stored, k.get("0")) for k in tops)]
            shown = ["–" if c is None else f"{c:.2f}" for c in cells]
            lines.append([row["name"], f"{row['images']:,}", stored, *shown])
    return "\n".join(table(heads, lines))


def unpackings(rows: list[Row]) -> str:
    """What `zaq_onnx.unpack` takes, once, in milliseconds."""
    heads = ["network", "unpack (4)", "unpack (5)", "then every load, ONNX Runtime"]
    heads += ["then every load, OpenVINO"]
    lines = []
    for row in rows:
        once = [f"{1000 * row['unpack'][s]:,.0f}" for s in ("4", "5")]
        loads = [f"{1000 * row[f'{r}_load']['int8_5']:,.0f}" for r in ("ort", "openvino")]
        lines.append([row["name"], *once, *loads])
    return "\n".join(table(heads, lines))


def floors(rows: list[Row]) -> str:
    """The least that unfolding costs, as shares of int8's load."""
    lines = []
    for row in rows:
        for words in row.get("floors", {}).get("ort", {}):
            cells = [f"{row['floors'][r][words]:.2f}" for r in ("ort", "openvino")]
            lines.append([words, *cells])
    return "\n".join(table(["weights unfolded by", "ONNX Runtime", "OpenVINO"], lines))


def _busy(rows: list[Row]) -> str:
    """How quiet the machine was, in words."""
    loads = [value for row in rows for value in row.get("busy", ())]
    if not loads:
        return "How busy the machine was is not known."
    return (
        f"Load average of the machine ({rows[0].get('processors', '?')} processors) while these "
        f"times were taken: {min(loads):.1f} to {max(loads):.1f}; above the number of processors, "
        "others were at work, too."
    )


def tables(rows: list[Row]) -> str:
    """All of them, as Markdown."""
    from importlib.metadata import version

    # What came back from JSON has text keys.
    rows = [_textual(row) for row in rows]
    threads = rows[0]["threads"] if rows else 1
    versions = (
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, openvino "
        f"{version('openvino')}, {platform.machine()}, {threads} thread(s)"
    )
    reduced = any(row.get("reduced") for row in rows)
    notes = (
        "PWLQ with 3 MAC bits stores 4 bits, with 4 MAC bits 5; activations have 8. Calibrated by "
        "torchao PT2E, exported by `zaq_onnx.export(..., calibration=...)`, so that tensors "
        "between layers have 8-bit ranges, too. Stock int8 is ONNX Runtime's `quantize_static` as "
        "its documentation recommends for x86: pre-processed, QDQ, activations U8, weights S8 per "
        f"channel{', seven bits (reduce_range)' if reduced else ''}. Latencies are milliseconds "
        "for one image, batch 1; times are the processor's, of one thread (OpenVINO compiles with "
        f"more), medians of alternating runs. {versions}. `(!)` marks what misses the aim: packed "
        "size at most 0.55 of int8 at 4 stored bits and 0.67 at 5, latency at most 1.02 of stock "
        "int8, load at most 1.5 of int8. Networks of timm have random weights, and random biases "
        "and means in BatchNorm. cifar10 is ResNet-20, imagenet MobileNetV1 0.25, with real "
        "weights; ranges from 64 training images drawn at random, or, for imagenet, from smooth "
        f"noise. {_busy(rows)}"
    )
    parts = [
        "# Shipping\n",
        notes,
        "\n## File sizes, kB\n",
        sizes(rows),
        SIZES,
        "\n## ONNX Runtime, ms\n",
        speeds(rows, "ort"),
        "\n## OpenVINO, ms\n",
        speeds(rows, "openvino"),
        "\n## Why packed files load longer, and what to do\n",
        FLOORS,
        floors(rows),
        UNPACKING,
        unpackings(rows),
        "\n## What is equal between int8 and packed\n",
        equality(rows),
        "\n## Accuracy, top-1 %\n",
        SATURATION if reduced else "",
        accuracies(rows),
    ]
    return "\n".join(parts) + "\n"


def _textual(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _textual(v) for k, v in value.items()}
    return value
