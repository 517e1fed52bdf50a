"""What the benchmark of converted models measures, and the page that tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.accuracy.tables import CALIBRATION, METHODS, SOURCE, TITLES
from benchmarks.tables import table
from zaq_plugin.pwlq import QuantSpec

STOCK = "the host's default"
CALIBRATION_BATCH = 64
HOSTS = {"fx": "torch.ao FX", "pt2e": "torchao PT2E", "nncf": "NNCF, OpenVINO"}
DATA_FREE = ", no data"
"""Ends a method that made its calibration images itself."""
ZERO_SHOT = ", zero-shot fine-tuned"
"""Ends a method that was fine-tuned without data, too."""
NNCF_BIAS = ", NNCF's bias correction"
"""Ends a method whose biases NNCF corrected, by channel means."""

UNKNOWN = "not recorded"
"""The processor of rows that are older than its column."""
OLDER = """
Rows whose processor is not recorded are older. Of uniform weights in PT2E and the hosts' own
defaults one each was run again and came out the same. PWLQ weights have moved a little since:
breakpoints of a few channels are better (0.003 dB), and no two weights overflow 16 bits
(`overflow="pairs"`, 0.03 dB less at 4 bits). FX's and NNCF's biases are corrected by the core
since, and a tensor that is added and multiplied has a narrow grid for the layers alone."""

CLIPPED = """
torch.ao FX fuses a convolution with a ReLU, not with the ReLU6 of this network: its default puts
what is in front of the ReLU6 on a 7-bit grid of its own, whose range is up to 25 times as wide.
With these ranges set to the ReLU6's (on 64 real images, to find the cause) the default's agreement
is 72 % instead of 0.5 %. This package's quantizer gives both one grid."""


@dataclass(frozen=True)
class Case:
    """One converted model to measure; widths are MAC bits, the processor is `processor()`'s."""

    task: str
    host: str
    method: str
    weight_bits: int
    activation_bits: int
    seed: int
    images: int
    processor: str = UNKNOWN

    @property
    def spec(self) -> QuantSpec | None:
        """The grid of the weights; None for the host's own observer."""
        name = self.method
        for ending in (NNCF_BIAS, ZERO_SHOT, DATA_FREE):
            name = name.removesuffix(ending)
        return None if name == STOCK else METHODS[name](self.weight_bits)

    @property
    def data_free(self) -> bool:
        """Whether calibration saw images that the model itself gave, whatever the task has."""
        return DATA_FREE in self.method

    @property
    def stored_bits(self) -> float:
        """Bits of one weight's code."""
        return self.weight_bits if self.spec is None else self.spec.stored_bits


@dataclass(frozen=True)
class Outcome:
    """What a case gave; percentages and seconds (preparation, calibration and conversion).

    ``reason`` tells why there is no model; the numbers are None then.
    """

    float_top1: float
    top1: float | None = None
    agreement: float | None = None
    quantized: int = 0
    left_out: Sequence[str] = ()
    int8_kernels: int = 0
    seconds: float = 0.0
    reason: str | None = None


def protocol(task: str, images: int) -> str:
    """What the numbers of a task mean."""
    return (
        f"Protocol: {CALIBRATION[task]} {SOURCE[task]} calibrate, the same for every row, in "
        f"batches of {CALIBRATION_BATCH}; evaluated on {images} images that are used for nothing "
        "else; 1 seed. Weights per output channel, activations per tensor and asymmetric, every "
        "convolution and linear layer quantized, the network's input at 8 bits. Rows of this "
        "package: ranges by top-10 median, biases corrected from activations; other inputs, such "
        "as those of residual additions, at 8 bits"
        + (
            "; depthwise layers at uniform int8, outputs' ranges twice those that synthetic images "
            "have"
            if task == "imagenet"
            else ""
        )
        + f". {STOCK.capitalize()}: `get_default_qconfig_mapping` in FX, `X86InductorQuantizer`"
        " in PT2E, histogram ranges, no bias correction. Quantized and left out are the audit's "
        "counts of layers; int8 kernels are counted in the model that ran. NNCF: the stripped "
        "model on OpenVINO; ranges are NNCF's, symmetric, but narrower activations take the 99.9th "
        "percentile; biases corrected from activations unless the row says otherwise; its default "
        "is `nncf.quantize` as it is"
        + (
            f"; rows with {DATA_FREE[2:]} calibrate on 128 images made from BatchNorm statistics"
            if task == "cifar10"
            else ""
        )
        + "."
    )


def markdown(done: dict[Case, Outcome]) -> str:
    """All results as one Markdown page."""
    text = [
        "# Accuracy of converted int8 models",
        "",
        "Written by `python -m benchmarks.hosts.accuracy --data DIR`. PWLQ stores one bit more than"
        "\nits MAC bits: compare at equal stored bits, or at equal MAC bits where the multiplier"
        "\ncounts. A top-1 difference below about one standard error of the evaluation (0.5 points"
        "\nfor 5,000 images, 2.5 for 400) means nothing by itself; of an agreement of 99 % it is"
        "\n0.14 points for 5,000 images, of 85 % 1.8 for 400. `ONEDNN_MAX_CPU_ISA=AVX2` and its"
        "\nlike stand for a processor without VNNI, emulated.",
        *([OLDER] if any(case.processor == UNKNOWN for case in done) else []),
    ]
    for task, images in sorted({(case.task, case.images) for case in done}):
        part = {c: o for c, o in done.items() if (c.task, c.images) == (task, images)}
        floating = next(iter(part.values())).float_top1
        text += ["", f"## {TITLES[task]}, {images} images, FP32 {floating:.2f} %", ""]
        text += results(part)
        text += ["", protocol(task, images), *remarks(part)]
        if task == "imagenet" and any((c.host, c.method) == ("fx", STOCK) for c in part):
            text += [CLIPPED]
    return "\n".join(text) + "\n"


def results(part: dict[Case, Outcome]) -> list[str]:
    """The lines of one task's table, wide activations and many stored bits first."""
    head = ["method", "host", "weights: MAC / stored bits", "activations: bits", "top-1 (%)"]
    head += ["agreement with FP32 (%)", "quantized / left out", "int8 kernels", "processor"]
    lines: list[list[str]] = []

    def order(case: Case) -> tuple[object, ...]:
        mine = case.method != STOCK
        widths = -case.activation_bits, -case.stored_bits
        return case.host, mine, *widths, case.method, case.processor

    for case in sorted(part, key=order):
        outcome = part[case]
        cells = [case.method, HOSTS[case.host]]
        if outcome.top1 is None or outcome.agreement is None:
            cells += ["all", "all", f"none: {outcome.reason}", "", "", "", case.processor]
        else:
            cells += [f"{case.weight_bits} / {case.stored_bits:g}", str(case.activation_bits)]
            cells += [f"{outcome.top1:.2f}", f"{outcome.agreement:.2f}"]
            cells += [f"{outcome.quantized} / {len(outcome.left_out)}", str(outcome.int8_kernels)]
            cells.append(case.processor)
        if cells not in lines:  # a host refuses a model at every width for one reason
            lines.append(cells)
    return table(head, lines, "ll" + "r" * (len(head) - 3) + "l")


def remarks(part: dict[Case, Outcome]) -> list[str]:
    """Which layers were left out, and why: each reason once."""
    said: dict[str, list[str]] = {}
    for case, outcome in part.items():
        name = f"{HOSTS[case.host]}, {case.method}"
        for reason in outcome.left_out:
            names = said.setdefault(reason, [])
            if name not in names:
                names.append(name)
    return [f"\nLeft out, {'; '.join(names)}: `{reason}`" for reason, names in said.items()]
