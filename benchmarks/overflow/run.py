"""What weights that cannot overflow cost, and what those that can lose: both kinds of processor.

    python -m benchmarks.overflow --data DIR [--model cifar10 imagenet] [--processor native avx2]
                                  [--images N] [--out benchmarks/results/overflow.jsonl]

Weights of 2 to 8 MAC bits, eight-bit activations, each with ``overflow="pairs"`` (the default) and
``overflow="allowed"``: signal to noise of all weights together, and agreement with the float model,
simulated and as converted models run. ``avx2`` is a processor without VNNI, emulated: oneDNN and
FBGEMM are told by ONEDNN_MAX_CPU_ISA and FBGEMM_ENABLE_INSTRUCTIONS, ONNX Runtime, which takes no
such word, runs in valgrind, whose processor has AVX2 at most. A product of two large weights with
two activations of 255 shows whether kernels saturate; every row says so. Each row becomes a JSON
line the moment it is there; a second run goes on where the first one ended.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

from benchmarks.data import foreign_images, load_task
from benchmarks.field_tasks import Subject, load_subject
from benchmarks.overflow.tables import KEY, markdown
from benchmarks.processor import processor
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from zaq_plugin.layers import is_depthwise
from zaq_plugin.ptq import calibrate, correct_bias, fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_plugin.pwlq.overflow import LIMIT, worst_pairs
from zaq_plugin.student import student_of
from zaq_plugin.student.host import Assignment, find_host

EMULATED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
"""What tells libraries to do without VNNI; they read it when they are loaded."""
OVERFLOW = ("pairs", "allowed")
CONVERTED = (3, 4, 6, 8)
"""MAC bits that are converted, too."""
CALIBRATION = {"cifar10": 256, "imagenet": 128}
BATCH = 50
ENGINES = ("x86", "fbgemm")
VALGRIND_IMAGES = {"cifar10": 200, "imagenet": 40}
"""So many take minutes in valgrind."""


def spec_of(bits: int, overflow: Any) -> QuantSpec:
    """PWLQ up to 6 MAC bits, of which int8 is capable; uniform above."""
    if bits <= 6:
        return PWLQSpec(bits, overflow=overflow)
    return UniformSpec(bits, overflow=overflow)


class Bed:
    """A task: float answers, calibration images, depthwise layers with int8 weights."""

    def __init__(self, name: str, data: Path, images: int) -> None:
        self.subject: Subject = load_subject(name, data)
        self.images = self.subject.images[:images]
        self.model = self.subject.model
        self.example = torch.zeros_like(self.images[:2])
        with torch.no_grad():
            self.expected = torch.cat([self.model(x) for x in self.images.split(BATCH)])
        count = CALIBRATION[name]
        if self.subject.train is not None:
            self.calibration = list(self.subject.calibration(0, count).split(32))
        else:
            self.calibration = list(foreign_images(data, load_task(name, data), count).split(32))
        self.folded = fold_batch_norm(self.model, (self.example,))
        self.depthwise = [n for n, m in self.model.named_modules() if is_depthwise(m)]

    def prepared(self, host: str, spec: QuantSpec) -> Any:
        """A calibrated student."""
        wide = UniformSpec(8, overflow=spec.overflow)
        overrides: dict[str, Any] = dict.fromkeys(self.depthwise, (wide, 8))
        model = self.folded if host == "simulated" else self.model  # others fold by themselves
        prepared = find_host(host).prepare(model, (self.example,), Assignment(spec, 8, overrides))
        calibrate(prepared.model, self.calibration)
        correct_bias(prepared.model, self.calibration)
        return prepared.model

    def score(self, run: Callable[[Tensor], Tensor], count: int | None = None) -> dict[str, Any]:
        """Top-1 and agreement with the float model, percent; of the first images."""
        with torch.no_grad():
            logits = torch.cat([run(x) for x in self.images[:count].split(BATCH)])
        return {
            "top1": self.subject.score(logits),
            "float": self.subject.score(self.expected[: len(logits)]),
            "agreement": self.subject.agreement(self.expected[: len(logits)], logits),
            "images": len(logits),
        }


def weights(student: nn.Module) -> dict[str, Any]:
    """Signal to noise of all weights together, dB, and how many layers hold pairs that overflow."""
    signal = noise = 0.0
    wide = 0
    for layer in student_of(student).layers().values():
        values = layer.weight.double()
        signal += float(values.square().sum())
        noise += float((layer.quantized().double() - values).square().sum())
        integers = layer.tensor().integer_weight().to(torch.int8)
        wide += int(worst_pairs(integers, layer.axis).max()) > LIMIT
    return {"sqnr_db": 10 * float(np.log10(signal / noise)), "wide_layers": wide}


# ---- runners -------------------------------------------------------------------------------------


def simulated(bed: Bed, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Float arithmetic on levels."""
    student = bed.prepared("simulated", spec_of(job["bits"], job["overflow"]))
    student.eval()
    yield {**job, "host": "simulated", **weights(student), **bed.score(student)}


def in_fx(bed: Bed, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """torch.ao's int8 modules, on the engines that x86 has."""
    for engine in ENGINES:
        torch.backends.quantized.engine = engine
        student = bed.prepared("fx", spec_of(job["bits"], job["overflow"]))
        figures = weights(student)
        converted = find_host("fx").convert(student)
        yield {
            **job,
            "host": f"FX, {engine}",
            "saturates": torch_saturates(engine),
            **figures,
            **bed.score(converted),
        }
    torch.backends.quantized.engine = "x86"


def in_pt2e(bed: Bed, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Inductor's int8 kernels: oneDNN."""
    import zaq_pt2e

    student = bed.prepared("pt2e", spec_of(job["bits"], job["overflow"]))
    figures = weights(student)
    shape = (torch.zeros(BATCH, *bed.example.shape[1:]),)
    converted: Any = find_host("pt2e").convert(student)
    lowered = zaq_pt2e.lower(converted, shape)
    yield {
        **job,
        "host": "PT2E, oneDNN",
        "saturates": torch_saturates("onednn"),
        **figures,
        **bed.score(lowered),
    }


_ASK = """
import sys, numpy as np, onnxruntime
o = onnxruntime.SessionOptions(); o.intra_op_num_threads = 1
s = onnxruntime.InferenceSession(sys.argv[1], o)
x = np.load(sys.argv[2]); n = s.get_inputs()[0].name
parts = [s.run(None, {n: x[i:i + 10]})[0] for i in range(0, len(x), 10)]
np.save(sys.argv[3], np.concatenate(parts))
"""


def on_onnx(bed: Bed, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The simulated student's file on ONNX Runtime; with VNNI, or in valgrind."""
    import zaq_onnx
    from zaq_onnx.saturation import probe_model

    emulated = job["processor"] == "avx2"
    if emulated and shutil.which("valgrind") is None:
        return
    student = bed.prepared("simulated", spec_of(job["bits"], job["overflow"]))
    count = VALGRIND_IMAGES[job["model"]] if emulated else len(bed.images)
    with tempfile.TemporaryDirectory() as folder:
        path, probe = Path(folder) / "model.onnx", Path(folder) / "probe.onnx"
        zaq_onnx.export(student, (bed.images[:2],), path, pack=False, calibration=bed.calibration)
        probe.write_bytes(probe_model().SerializeToString())

        def ask(file: Path, x: Tensor) -> Tensor:
            source, out = Path(folder) / "x.npy", Path(folder) / "y.npy"
            np.save(source, x.numpy())
            tool = ["valgrind", "-q", "--tool=none"] if emulated else []
            asked = [*tool, sys.executable, "-c", _ASK, str(file), str(source), str(out)]
            subprocess.run(asked, check=True, capture_output=True)
            return torch.from_numpy(np.load(out))

        full = ask(probe, torch.full((1, 64, 4, 4), 255.0))
        answers = ask(path, bed.images[:count])
    parts = iter(answers.split(BATCH))
    yield {
        **job,
        "host": "ONNX Runtime",
        "saturates": bool((full - 255).abs().max() > 2),
        **weights(student),
        **bed.score(lambda x: next(parts), count),
    }


def stock_fx(bed: Bed, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """torch.ao's default: 8-bit weights, activations of which it leaves a bit unused."""
    for engine in ENGINES:
        torch.backends.quantized.engine = engine
        mapping = get_default_qconfig_mapping(engine)
        model: Any = copy.deepcopy(bed.model)
        prepared = quantize_fx.prepare_fx(model, mapping, (bed.example,))
        with torch.no_grad():
            for batch in bed.calibration:
                prepared(batch)
        converted = quantize_fx.convert_fx(prepared)
        facts = {"host": f"FX, {engine}", "saturates": torch_saturates(engine)}
        yield {**job, **facts, **bed.score(converted)}
    torch.backends.quantized.engine = "x86"


@torch.no_grad()
def torch_saturates(engine: str) -> bool:
    """Whether an engine's int8 convolution adds 255 * 127 twice in 16 bits."""
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    ones, zeros = torch.ones(32), torch.zeros(32, dtype=torch.int)
    w = torch.quantize_per_channel(torch.full((32, 64, 3, 3), 127.0), ones, zeros, 0, torch.qint8)
    x = torch.quantize_per_tensor(torch.full((1, 64, 5, 5), 255.0), 1.0, 0, torch.quint8)
    total = 127.0 * 255 * 64 * 9
    packed = torch.ops.quantized.conv2d_prepack(w, None, [1, 1], [0, 0], [1, 1], 1)
    output = torch.ops.quantized.conv2d(x, packed, total / 200, 0).dequantize()
    torch.backends.quantized.engine = before
    return bool((output / total - 1).abs().max() > 0.02)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the table."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of models and images")
    parser.add_argument("--model", choices=tuple(CALIBRATION), nargs="+", default=[*CALIBRATION])
    parser.add_argument("--processor", choices=("native", "avx2"), default="native")
    parser.add_argument("--bits", type=int, nargs="+", help="only these MAC bits")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runner", nargs="+", default=["simulated", "fx", "stock", "pt2e", "onnx"])
    parser.add_argument("--out", type=Path, default=RESULTS / "overflow.jsonl")
    args = parser.parse_args(argv)
    if args.processor == "avx2" and not EMULATED.items() <= os.environ.items():
        again = [sys.executable, "-m", "benchmarks.overflow", *(argv or sys.argv[1:])]
        os.execve(sys.executable, again, {**os.environ, **EMULATED})
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runners = {"fx": in_fx, "pt2e": in_pt2e, "onnx": on_onnx, "stock": stock_fx}
    done = {tuple(row[k] for k in ("runner", *KEY)) for row in read_rows(args.out)}
    for model in args.model:
        bed = Bed(model, args.data, args.images)
        for runner in args.runner:
            if runner == "simulated" and args.processor == "avx2":
                continue  # it computes in float
            if runner in ("fx", "stock") and model == "imagenet":
                continue  # torch.fx cannot trace its padding
            bits = args.bits or (range(2, 9) if runner == "simulated" else CONVERTED)
            for width in (8,) if runner == "stock" else bits:
                for overflow in ("stock",) if runner == "stock" else OVERFLOW:
                    job = {"model": model, "bits": width, "stored": width, "overflow": overflow,
                           "processor": args.processor, "runner": runner}  # fmt: skip
                    if runner != "stock":
                        job["stored"] = spec_of(width, overflow).stored_bits
                    if tuple(job[k] for k in ("runner", *KEY)) in done:
                        continue
                    for figures in {"simulated": simulated, **runners}[runner](bed, job):
                        row = {**figures, "flags": processor()}
                        append_row(args.out, row)
                        print(row, file=sys.stderr, flush=True)
    args.out.with_suffix(".md").write_text(markdown(read_rows(args.out)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
