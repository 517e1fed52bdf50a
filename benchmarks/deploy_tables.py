"""Tables of `benchmarks/deploy.py`."""

from __future__ import annotations

import platform
from typing import Any

import onnxruntime
import torch

LIMITS = {"4": 0.55, "5": 0.67, "load": 1.5, "latency": 1.02}
"""What we aim at, as shares of int8."""

Row = dict[str, Any]


def _ratio(value: float, limit: float) -> str:
    return f"{value:.2f}" + ("" if round(value, 2) <= limit else " (!)")


def sizes(rows: list[Row]) -> str:
    """File sizes in kB."""
    lines = [
        "| network | FP32 | stock int8 | int8 | packed, 4 stored bits | of int8 | packed, 5 stored "
        "bits | of int8 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        size = {k: v / 1000 for k, v in row["bytes"].items()}
        stock = f"{size['stock']:,.0f}" if "stock" in size else "–"
        four, five = (size[f"packed{s}"] / size[f"int8_{s}"] for s in (4, 5))
        lines.append(
            f"| {row['name']} | {size['fp32']:,.0f} | {stock} | {size['int8_5']:,.0f} | "
            f"{size['packed4']:,.0f} | {_ratio(four, LIMITS['4'])} | {size['packed5']:,.0f} | "
            f"{_ratio(five, LIMITS['5'])} |"
        )
    return "\n".join(lines)


def _number(values: dict[str, float], key: str, digits: int) -> str:
    return f"{values[key]:,.{digits}f}" if key in values else "–"


def _share(values: dict[str, float], key: str, other: str, limit: float) -> str:
    if key not in values or other not in values:
        return "–"
    return _ratio(values[key] / values[other], limit)


def speeds(rows: list[Row], runtime: str) -> str:
    """Latency and load time in milliseconds under one runtime."""
    lines = [
        "| network | FP32 | stock int8 | ours, int8 | ours, packed (5) | packed / stock | load "
        "FP32 | load int8 | load packed (4) | / int8 | load packed (5) | / int8 |",
        "|---|" + "---:|" * 11,
    ]
    for row in rows:
        took = {k: 1000 * v for k, v in row[f"{runtime}_latency"].items()}
        load = {k: 1000 * v for k, v in row[f"{runtime}_load"].items()}
        cells = [_number(took, k, 2) for k in ("fp32", "stock", "int8_5", "packed5")]
        cells.append(_share(took, "packed5", "stock", LIMITS["latency"]))
        cells += [_number(load, k, 0) for k in ("fp32", "int8_5")]
        for stored in (4, 5):
            cells.append(_number(load, f"packed{stored}", 0))
            cells.append(_share(load, f"packed{stored}", f"int8_{stored}", LIMITS["load"]))
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def equality(rows: list[Row]) -> str:
    """What is the same between int8 and packed files."""
    lines = [
        "| network | layers in integers / in float | optimized graph identical | outputs "
        "identical, ONNX Runtime | outputs identical, OpenVINO |",
        "|---|---:|---|---|---|",
    ]
    for row in rows:
        answers = [
            ("yes" if all(row[key].values()) else "no") if row[key] else "–"
            for key in ("same_graph", "ort_same", "openvino_same")
        ]
        lines.append(
            f"| {row['name']} | {row['layers'][0]} / {row['layers'][1]} | {' | '.join(answers)} |"
        )
    return "\n".join(lines)


def accuracies(rows: list[Row]) -> str:
    """Top-1 of the packed file against the converted model."""
    lines = [
        "| network | stored bits | FP32 | converted model, torch | packed file, ONNX Runtime | "
        "packed file, OpenVINO |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        for stored in ("4", "5") if "fp32_accuracy" in row else ():
            cells = [
                row["fp32_accuracy"],
                *(row[f"{k}_accuracy"].get(stored) for k in ("converted", "ort", "openvino")),
            ]
            shown = " | ".join("–" if c is None else f"{c:.1f}" for c in cells)
            lines.append(f"| {row['name']} | {stored} | {shown} |")
    return "\n".join(lines)


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
    notes = (
        "PWLQ with 3 MAC bits stores 4 bits, with 4 MAC bits 5; activations have 8. Calibrated by "
        "torchao PT2E, exported by `zaq_onnx.export(..., calibration=...)`, so that tensors "
        "between layers have 8-bit ranges, too. Stock int8 is ONNX Runtime's `quantize_static` "
        "(QDQ, weights per channel). Latencies are milliseconds for one image, batch 1; times are "
        "the processor's, of one thread (OpenVINO compiles with more), medians of "
        f"alternating runs. {versions}. `(!)` marks what misses the aim: packed size at most 0.55 "
        "of int8 at 4 stored bits and 0.67 at 5, latency at most 1.02 of stock int8, load at most "
        "1.5 of int8. Networks of timm have random weights. Data: cifar10 is ResNet-20, imagenet "
        "MobileNetV1 0.25; accuracy is top-1 in percent on 1,000 and 400 test images, one seed; "
        "ranges from 64 training images, or, for imagenet, from smooth noise. "
        f"{_busy(rows)}"
    )
    floors = (
        "\nWhat a packed file cannot go below: every weight takes its stored bits, and every "
        "channel eight bytes of scale and bias, as in the int8 file, and 4.5 bytes of codebook; "
        "where a channel has few weights these count. What a load costs beyond int8: nearly all "
        "is the runtimes' Gather, which copies the levels of each pair of weights, about 8 ns a "
        "pair in ONNX Runtime, while an int8 weight is read as it is. GatherND is no faster; "
        "GatherElements is, but OpenVINO does not fold it; arithmetic on every weight would need "
        "about ten passes of 0.5 ns a weight."
    )
    parts = [
        "# Shipping\n",
        notes,
        floors,
        "\n## File sizes, kB\n",
        sizes(rows),
        "\n## ONNX Runtime, ms\n",
        speeds(rows, "ort"),
        "\n## OpenVINO, ms\n",
        speeds(rows, "openvino"),
        "\n## What is equal between int8 and packed\n",
        equality(rows),
        "\n## Accuracy, top-1 %\n",
        accuracies(rows),
    ]
    return "\n".join(parts) + "\n"


def _textual(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _textual(v) for k, v in value.items()}
    return value
