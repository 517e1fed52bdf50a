"""Accuracy of converted int8 models on real images: PWLQ and uniform grids inside the hosts.

    python -m benchmarks.hosts.accuracy --data DIR [--model cifar10 imagenet] [--host fx pt2e nncf]
                                        [--out benchmarks/results/accuracy_hosts.jsonl]

Nothing is simulated: FX models run on the modules of ``convert_fx``, PT2E models on Inductor's int8
kernels, NNCF models on OpenVINO. The hosts' own defaults stand beside, calibrated with the same
images. Each result becomes one JSON line the moment it is there; a second run goes on where the
first one ended. A table of all lines is written beside them, as Markdown.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx
from torch.fx.proxy import TraceError
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import zaq_fx
import zaq_pt2e
from benchmarks.accuracy.run import Bench
from benchmarks.data.subjects import load_subject, traceable
from benchmarks.data.tasks import LOADERS, accuracy, load_task, logits_of
from benchmarks.hosts.accuracy_tables import (
    CALIBRATION_BATCH,
    DATA_FREE,
    HOSTS,
    NNCF_BIAS,
    STOCK,
    ZERO_SHOT,
    Case,
    Outcome,
    markdown,
)
from benchmarks.processor import processor
from benchmarks.rows import RESULTS, append_record, command_line, read_records
from zaq_plugin.layers import is_depthwise
from zaq_plugin.ptq import calibrate, correct_bias
from zaq_plugin.pwlq import QuantSpec, UniformSpec
from zaq_plugin.report import Audit
from zaq_plugin.strategies.stage import OUTPUT_MARGIN
from zaq_plugin.student.host import Assignment, find_host

NEEDS = """Needs --data DIR, torchao, and for nncf also nncf and openvino. Takes about half a minute
a configuration in fx and pt2e, two minutes in nncf: two hours for all."""

UNIFORM = ("uniform min-max, symmetric", "uniform clipped, symmetric")
PWLQ = "PWLQ joint, asymmetric"  # PWLQSpec()
WIDTHS = ((8, 8), (6, 8), (4, 8), (4, 4))


@dataclass
class Converted:
    """A model on int8 kernels, what became of its layers, and how many kernels are int8."""

    model: nn.Module
    audit: Audit
    int8_kernels: int


def default_widths(host: str) -> tuple[int, int]:
    """MAC bits of weights and activations that the host's default takes, from its observers."""
    if host == "nncf":
        return 8, 8
    if host == "fx":
        config: Any = get_default_qconfig_mapping().global_qconfig
        weight, activation = config.weight(), config.activation()
    else:
        chosen = get_default_x86_inductor_quantization_config()
        weight, activation = chosen.weight, chosen.input_activation
    low, high = activation.quant_min, activation.quant_max
    return (weight.quant_max - weight.quant_min).bit_length(), (high - low).bit_length()


def cases(task: str, host: str, images: int) -> Iterator[Case]:
    """Everything to measure in a host, uniform grids at PWLQ's stored bits included."""
    here = processor()
    yield Case(task, host, STOCK, *default_widths(host), 0, images, here)
    if host == "nncf":  # narrow uniform grids of this package stand beside in the other hosts
        yield from (Case(task, host, m, 8, 8, 0, images, here) for m in UNIFORM)
        endings = ("", DATA_FREE, NNCF_BIAS) if task == "cifar10" else ("", NNCF_BIAS)
        for bits, activations in WIDTHS:
            for ending in endings if bits <= 6 else ():
                yield Case(task, host, PWLQ + ending, bits, activations, 0, images, here)
        if task == "cifar10":
            yield Case(task, host, PWLQ + DATA_FREE + ZERO_SHOT, 4, 4, 0, images, here)
        return
    for bits, activations in WIDTHS:
        for width in (bits, bits + 1) if bits < 8 else (bits,):
            for method in UNIFORM:
                yield Case(task, host, method, width, activations, 0, images, here)
        if bits <= 6:  # wider PWLQ levels are not int8
            yield Case(task, host, PWLQ, bits, activations, 0, images, here)


class Bed:
    """A task with what hosts need: a model, shapes, calibration batches, layers with a rule."""

    def __init__(self, bench: Bench, model: nn.Module) -> None:
        self.bench, self.model = bench, model
        count = len(bench.images)
        # A lowered model runs on one shape only: batches of equal size.
        self.batch = max(n for n in range(1, bench.batch + 1) if count % n == 0)
        self.example = torch.zeros_like(bench.images[:2])
        self.depthwise = [n for n, m in self.model.named_modules() if is_depthwise(m)]

    def calibration(self) -> list[Tensor]:
        """Batches that calibrate."""
        return list(self.bench.source(0)[0].split(CALIBRATION_BATCH))

    def overrides(self, activations: int) -> dict[str, tuple[QuantSpec, int]]:
        """Depthwise layers take uniform int8 weights, as in the accuracy benchmark."""
        return dict.fromkeys(self.depthwise, (UniformSpec(8), activations))


@torch.no_grad()
def observe(prepared: nn.Module, batches: Sequence[Tensor]) -> None:
    """Stock calibration: run the batches."""
    for batch in batches:
        prepared(batch)


def through_host(name: str, bed: Bed, case: Case) -> tuple[nn.Module, Audit]:
    """This package's way through a host: ranges and biases from the calibration images."""
    assert case.spec is not None
    bits, host = case.activation_bits, find_host(name)
    prepared = host.prepare(
        bed.model, (bed.example,), Assignment(case.spec, bits, bed.overrides(bits))
    )
    made = bed.bench.task.train is None
    margin = OUTPUT_MARGIN if made else 1.0  # as strategies have it
    calibrate(prepared.model, bed.calibration(), output_margin=margin)
    correct_bias(prepared.model, bed.calibration())
    converted = host.convert(prepared.model)
    return converted, host.audit(converted)


def convert_fx(bed: Bed, case: Case) -> Converted:
    """Through torch.ao FX.

    Raises:
        ValueError: torch.fx cannot trace the model.
    """
    inputs = (bed.example,)
    if case.spec is None:
        mapping = get_default_qconfig_mapping()
        prepared: Any = quantize_fx.prepare_fx(copy.deepcopy(bed.model), mapping, inputs)
        observe(prepared, bed.calibration())
        converted: Any = quantize_fx.convert_fx(prepared)
        records = zaq_fx.audit(converted)
    else:
        converted, records = through_host("fx", bed, case)
    kernels = sum(str(record.kernel).startswith("int8") for record in records)
    return Converted(converted, records, kernels)


def convert_pt2e_model(bed: Bed, case: Case) -> Converted:
    """Through torchao PT2E and down to Inductor's int8 kernels, for batches of ``bed.batch``."""
    converted: Any
    if case.spec is None:
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        # The X86 quantizer finds layers in strict exports only.
        program = torch.export.export(bed.model, (bed.example,), dynamic_shapes=shapes, strict=True)
        quantizer: Any = X86InductorQuantizer()
        quantizer.set_global(get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(program.module(), quantizer)
        observe(prepared, bed.calibration())
        converted = convert_pt2e(prepared)
        records = zaq_pt2e.audit(converted)
    else:
        converted, records = through_host("pt2e", bed, case)
    shape = (bed.batch, *bed.example.shape[1:])
    lowered = zaq_pt2e.lower(converted, (torch.zeros(shape),))
    # Counted in the graph: kernels of the stock model do not tell their layers' names.
    names = [str(node.target) for node in lowered.graph.nodes]
    kernels = sum(name.startswith(("onednn.qconv", "onednn.qlinear")) for name in names)
    return Converted(lowered, records, kernels)


def convert_nncf(bed: Bed, case: Case) -> Converted:
    """Through NNCF and OpenVINO, for batches of ``bed.batch``."""
    from benchmarks.hosts import accuracy_nncf as nncf_host

    wide: dict[str, QuantSpec] = dict.fromkeys(bed.depthwise, UniformSpec(8))
    stripped, records = nncf_host.quantized(bed.model, case, bed.calibration(), wide)
    shape = (bed.batch, *bed.example.shape[1:])
    running = nncf_host.OnOpenVINO(stripped, torch.zeros(shape))
    return Converted(running, records, running.int8_kernels())


CONVERT: dict[str, Callable[[Bed, Case], Converted]] = {
    "fx": convert_fx,
    "pt2e": convert_pt2e_model,
    "nncf": convert_nncf,
}


def measure(bed: Bed, case: Case) -> Outcome:
    """Convert the model and run it on all images; what the host cannot trace says why."""
    bench, started = bed.bench, time.perf_counter()
    try:
        converted = CONVERT[case.host](bed, case)
    except ValueError as error:
        if not (isinstance(error, TraceError) or isinstance(error.__cause__, TraceError)):
            raise
        return Outcome(bench.top1, reason=" ".join(str(error).split()))
    seconds = time.perf_counter() - started
    logits = logits_of(converted.model, bench.images, bed.batch)
    return Outcome(
        bench.top1,
        accuracy(logits, bench.labels),
        accuracy(logits, bench.reference.argmax(1)),
        len(converted.audit.quantized),
        [f"{record.name}: {record.reason}" for record in converted.audit.skipped],
        converted.int8_kernels,
        seconds,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the table."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", type=Path, required=True, help="folder of models and images")
    parser.add_argument("--model", choices=list(LOADERS), nargs="+", default=list(LOADERS))
    parser.add_argument("--host", choices=list(HOSTS), nargs="+", default=list(HOSTS))
    parser.add_argument("--only", default="", help="only methods whose name holds this text")
    parser.add_argument("--limit", type=int, help="measure on the first so many images only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy_hosts.jsonl")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    done = read_records(args.out, Case, Outcome)
    for task in args.model:
        bench = Bench(load_task(task, args.data), args.limit, log, held_out=0)
        log(f"{task}: FP32 {bench.top1:.2f} % (expected {bench.task.published} %)")
        beds = dict.fromkeys(args.host, Bed(bench, bench.task.model))
        if "fx" in beds:
            beds["fx"] = Bed(bench, traceable(load_subject(task, args.data)))
        todo = [c for host in args.host for c in cases(task, host, len(bench.images))]
        for case in todo:
            if case in done or args.only not in case.method:
                continue
            outcome = done[case] = measure(beds[case.host], case)
            append_record(args.out, case, outcome)
            result = outcome.reason or f"{outcome.top1:.2f} %, agreement {outcome.agreement:.1f} %"
            name = f"{case.host} W{case.weight_bits}A{case.activation_bits} {case.method}"
            log(f"{name}: {result}")
            args.out.with_suffix(".md").write_text(markdown(done))
    args.out.with_suffix(".md").write_text(markdown(done))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
