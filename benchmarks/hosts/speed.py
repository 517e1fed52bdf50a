"""Speed inside the hosts, as ratios within one run: PWLQ against the host's own 8-bit quantizers.

    python -m benchmarks.hosts.speed [--model resnet18] [--size 64] [--batch 8] [--repeats 15]
                               [--out benchmarks/results/hosts.md]

Three questions for each host, torch.ao FX and torchao PT2E: what a training step of the prepared
model costs, what the converted model's latency is (float beside it), and how long conversion takes.
Runs of subject and yardstick alternate; medians. The model is randomly initialised: times do not
depend on the weights' values.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    quantize_fx,
)
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import zaq_fx
import zaq_pt2e
from benchmarks.processor import processor
from benchmarks.rows import command_line
from benchmarks.tables import table
from benchmarks.timing import Times, alternating
from zaq_plugin.pwlq import PWLQSpec

NEEDS = """Needs timm, torchao and a quiet machine. Takes some minutes."""

SPEC = PWLQSpec(bits=4)
STEP_LIMIT, LATENCY_LIMIT = 1.25, 1.05


@dataclass
class Row:
    """One line of the table; seconds of processor."""

    what: str
    pwlq: float
    stock: float
    floating: float | None = None
    limit: float | None = None

    def cells(self) -> list[str]:
        """The line's cells as text."""
        ratio = f"{self.pwlq / self.stock:.2f}"
        if self.limit is not None:
            ratio += f" (limit {self.limit:.2f})"
        floating = "" if self.floating is None else f"{1e3 * self.floating:.1f}"
        return [self.what, f"{1e3 * self.pwlq:.1f}", f"{1e3 * self.stock:.1f}", ratio, floating]


def row_of(what: str, taken: Mapping[str, Times], limit: float) -> Row:
    """The line of three calls that took turns."""
    pwlq, stock, floating = (taken[kind].processor for kind in ("pwlq", "stock", "float"))
    return Row(what, pwlq, stock, floating, limit)


def training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """A step of SGD on the model's squared output."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """One forward pass."""

    def run() -> None:
        with torch.no_grad():
            model(images)

    return run


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds of processor."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


class FX:
    """torch.ao FX graph mode; the stock side uses the default x86 mappings."""

    name = "FX"

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images

    def prepared(self, pwlq: bool, qat: bool) -> nn.Module:
        """A prepared and once calibrated model."""
        if pwlq:
            student: nn.Module = zaq_fx.prepare(self.model, (self.images,), SPEC, qat=qat)
        else:
            model = copy.deepcopy(self.model).train(qat)
            mapping = get_default_qat_qconfig_mapping if qat else get_default_qconfig_mapping
            prepare: Any = quantize_fx.prepare_qat_fx if qat else quantize_fx.prepare_fx
            student = prepare(model, mapping("x86"), (self.images,))
        with torch.no_grad():
            student(self.images)
        return student

    def convert(self, prepared: Any, pwlq: bool) -> nn.Module:
        """Conversion, as a user calls it."""
        if pwlq:
            return zaq_fx.convert(prepared)
        converted: nn.Module = quantize_fx.convert_fx(prepared)
        return converted

    def freeze(self, prepared: nn.Module) -> None:
        """Ranges and breakpoints stay."""
        prepared.apply(torch.ao.quantization.disable_observer)

    def runnable(self, converted: Any) -> nn.Module:
        """The model on its kernels."""
        module: nn.Module = converted
        return module


class PT2E:
    """torchao PT2E; the stock side is X86InductorQuantizer, ours puts PWLQ into it."""

    name = "PT2E"

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images

    def prepared(self, pwlq: bool, qat: bool) -> nn.Module:
        """A prepared and once calibrated model."""
        config = get_default_x86_inductor_quantization_config(is_qat=qat)
        quantizer: Any = X86InductorQuantizer().set_global(config)
        if pwlq:
            quantizer = zaq_pt2e.with_pwlq(quantizer, SPEC)
        # The X86 quantizer finds layers in strict exports only.
        exported = torch.export.export(self.model, (self.images,), strict=True).module()
        student = (prepare_qat_pt2e if qat else prepare_pt2e)(exported, quantizer)
        if qat:
            zaq_pt2e.set_training(student, True)
        with torch.no_grad():
            student(self.images)
        return student

    def convert(self, prepared: Any, pwlq: bool) -> nn.Module:
        """Conversion, as a user calls it."""
        converted: nn.Module = convert_pt2e(prepared)
        return converted

    def freeze(self, prepared: Any) -> None:
        """Ranges and breakpoints stay."""
        zaq_pt2e.freeze_ranges(prepared)

    def runnable(self, converted: Any) -> nn.Module:
        """The model on its kernels."""
        with torch.no_grad():
            module: nn.Module = lower_pt2e_quantized_to_x86(converted, (self.images,))
        return module


def measure(host: FX | PT2E, repeats: int) -> list[Row]:
    """The rows of one host."""
    images = host.images
    rows = []
    trained = {kind: host.prepared(kind == "pwlq", qat=True) for kind in ("pwlq", "stock")}
    floating = copy.deepcopy(host.model).train()
    steps = {kind: training_step(model, images) for kind, model in trained.items()}
    steps["float"] = training_step(floating, images)
    taken = alternating(steps, repeats)
    name = f"{host.name}: training step, observers on"
    rows.append(row_of(name, taken, STEP_LIMIT))
    for model in trained.values():
        host.freeze(model)
    taken = alternating(steps, repeats)
    name = f"{host.name}: training step, ranges frozen"
    rows.append(row_of(name, taken, STEP_LIMIT))
    spent = {
        kind: timed(partial(host.convert, model, kind == "pwlq"))[1]
        for kind, model in trained.items()
    }
    after_training = Row(f"{host.name}: conversion after training", spent["pwlq"], spent["stock"])

    calibrated = {kind: host.prepared(kind == "pwlq", qat=False) for kind in ("pwlq", "stock")}
    converted, seconds = {}, {}
    for kind, model in calibrated.items():
        converted[kind], seconds[kind] = timed(partial(host.convert, model, kind == "pwlq"))
    calls = {kind: inference(host.runnable(model), images) for kind, model in converted.items()}
    calls["float"] = inference(copy.deepcopy(host.model).eval(), images)
    taken = alternating(calls, 3 * repeats)
    name = f"{host.name}: latency of the converted model"
    rows.append(row_of(name, taken, LATENCY_LIMIT))
    rows.append(
        Row(f"{host.name}: conversion after calibration", seconds["pwlq"], seconds["stock"])
    )
    return [*rows, after_training]


def markdown(rows: list[Row], settings: str) -> str:
    """The results as Markdown."""
    head = ["", "PWLQ (ms)", "stock int8 (ms)", "PWLQ / stock", "float32 (ms)", "processor"]
    lines = table(head, [[*row.cells(), processor()] for row in rows], "lrrrrl")
    notes = (
        f"{SPEC.label} against the host's default 8-bit quantizer. {settings} Medians of "
        "alternating runs, milliseconds of processor; conversions are single runs. Stock "
        "conversion after training in PT2E compares the graph with patterns; ours follows the "
        "nodes. Solving for breakpoints is part of our conversion after calibration."
    )
    return f"# Speed inside the hosts\n\n{notes}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Measures both hosts and writes the table."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--model", default="resnet18", help="a model of timm")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15, help="counted runs of each step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="Markdown file to write, besides printing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # Zero gammas, with which timm starts residual blocks, turn the stock models' output to NaN.
    arguments = {"zero_init_last": False} if options.model.startswith("resnet") else {}
    model = timm.create_model(options.model, **arguments).eval()
    images = torch.randn(options.batch, 3, options.size, options.size)
    rows = [row for host in (FX, PT2E) for row in measure(host(model, images), options.repeats)]
    settings = (
        f"{options.model}, batch {options.batch} of {options.size} x {options.size} images, "
        f"{options.threads} thread(s), torch {torch.__version__}."
    )
    text = markdown(rows, settings)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
