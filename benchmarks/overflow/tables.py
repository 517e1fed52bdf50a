"""The tables of `benchmarks.overflow`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.data.subjects import TITLES
from benchmarks.tables import table

KEY = ("model", "bits", "overflow", "processor")


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Signal to noise and agreement, with and without the constraint."""
    lines = [
        "# Weights that cannot overflow, and weights that can",
        "",
        '`python -m benchmarks.overflow --data DIR`. `pairs` is `overflow="pairs"`: no two',
        "neighbouring weights of one sign add up to more than 128, so that kernels which add two",
        "products in 16 bits never saturate. `allowed` leaves weights as they are. Weights per",
        "output channel: PWLQ up to 6 MAC bits, uniform symmetric at 7 and 8; depthwise layers 8",
        "bits; activations 8 bits; biases corrected. Agreement with the float network, percent of",
        "the images named; one seed. `VNNI` rows ran on the machine's own processor (AVX-512 with",
        "VNNI), `none` rows on an emulated one: oneDNN with ONEDNN_MAX_CPU_ISA=AVX2, FBGEMM with",
        "FBGEMM_ENABLE_INSTRUCTIONS=AVX2, ONNX Runtime in valgrind. torch's engine `x86` asks the",
        "processor itself: it stays with oneDNN where a real one without VNNI takes FBGEMM.",
        "",
        "`pairs` is the default: on CIFAR-10 it costs less than 0.1 dB up to 4 MAC bits, 0.3 and",
        "0.7 dB at 5 and 6, and up to 0.6 points of agreement (one standard error: 0.2 to 0.6),",
        "while `allowed` loses 3 to 5 points without VNNI (MobileNetV1 on PT2E and OpenVINO: 20 to",
        "25) and `pairs` nothing: on OpenVINO its figures are the same on both. Uniform weights of",
        "8 bits lose most,",
        "2.4 dB, and still agree better than the host's own default, which leaves a bit of all",
        "activations unused (`stock`).",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        lines += ["", f"## {TITLES[model]}", ""]
        lines += _weights(own)
        if any(row["host"] != "simulated" for row in own):
            lines += ["", *_converted(own)]
    return "\n".join(lines) + "\n"


def _weights(rows: Sequence[dict[str, Any]]) -> list[str]:
    heads = ["MAC / stored bits", "SQNR of weights, dB: pairs", "allowed"]
    heads += ["layers that may overflow if allowed", "agreement: pairs", "allowed"]
    heads += ["top-1: pairs", "allowed", "float", "images"]
    lines = []
    by_key = {(r["bits"], r["overflow"]): r for r in rows if r["host"] == "simulated"}
    for bits in sorted({bits for bits, _ in by_key}):
        pair, free = by_key.get((bits, "pairs")), by_key.get((bits, "allowed"))
        if pair and free:
            shown = [pair["sqnr_db"], free["sqnr_db"], pair["agreement"], free["agreement"]]
            shown += [pair["top1"], free["top1"], pair["float"]]
            cells = [f"{value:.2f}" for value in shown]
            cells.insert(2, str(free["wide_layers"]))
            lines.append([f"{bits} / {pair['stored']}", *cells, str(pair["images"])])
    return ["Simulated:", "", *table(heads, lines)]


def _converted(rows: Sequence[dict[str, Any]]) -> list[str]:
    heads = ["runs on", "processor", "its kernels saturate", "MAC / stored bits"]
    heads += ["agreement: pairs", "allowed", "stock", "images"]
    lines = []
    converted = [row for row in rows if row["host"] != "simulated"]
    by_key = {(r["host"], r["processor"], r["bits"], r["overflow"]): r for r in converted}
    for host, processor, bits in dict.fromkeys(key[:3] for key in sorted(by_key)):
        kinds = [
            by_key.get((host, processor, bits, kind)) for kind in ("pairs", "allowed", "stock")
        ]
        some = next(row for row in kinds if row)
        cells = [host, "VNNI" if processor == "native" else "none"]
        cells += ["yes" if some["saturates"] else "no", f"{bits} / {some['stored']}"]
        cells += ["–" if row is None else f"{row['agreement']:.2f}" for row in kinds]
        lines.append([*cells, str(some["images"])])
    return ["Converted:", "", *table(heads, lines, "llllr")]
