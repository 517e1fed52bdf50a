"""What each row of `benchmarks.overflow` runs: simulated, or a host's own kernels."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

from benchmarks.data.subjects import Subject, load_subject
from benchmarks.data.tasks import foreign_images, load_task
from zaq_plugin.layers import is_depthwise
from zaq_plugin.ptq import calibrate, correct_bias, fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_plugin.pwlq.overflow import LIMIT, worst_pairs
from zaq_plugin.student import student_of
from zaq_plugin.student.host import Assignment, find_host

CALIBRATION = {"cifar10": 256, "imagenet": 128}
BATCH = 50
PROBE = torch.full((1, 64, 4, 4), 255.0)
"""Activations of the file that shows saturation."""
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


def exported(bed: Bed, job: dict[str, Any], folder: str) -> tuple[Path, Path, dict[str, Any]]:
    """The simulated student's file, a file that shows saturation, the weights' figures."""
    import zaq_onnx
    from zaq_onnx.runtimes import probe_model

    student = bed.prepared("simulated", spec_of(job["bits"], job["overflow"]))
    path, probe = Path(folder) / "model.onnx", Path(folder) / "probe.onnx"
    zaq_onnx.export(student, (bed.images[:2],), path, pack=False, calibration=bed.calibration)
    probe.write_bytes(probe_model().SerializeToString())
    return path, probe, weights(student)


def on_onnx(bed: Bed, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The simulated student's file on ONNX Runtime; with VNNI, or in valgrind."""
    emulated = job["processor"] == "avx2"
    if emulated and shutil.which("valgrind") is None:
        return
    count = VALGRIND_IMAGES[job["model"]] if emulated else len(bed.images)
    with tempfile.TemporaryDirectory() as folder:
        path, probe, figures = exported(bed, job, folder)

        def ask(file: Path, x: Tensor) -> Tensor:
            source, out = Path(folder) / "x.npy", Path(folder) / "y.npy"
            np.save(source, x.numpy())
            tool = ["valgrind", "-q", "--tool=none"] if emulated else []
            asked = [*tool, sys.executable, "-c", _ASK, str(file), str(source), str(out)]
            subprocess.run(asked, check=True, capture_output=True)
            return torch.from_numpy(np.load(out))

        full = ask(probe, PROBE)
        answers = ask(path, bed.images[:count])
    parts = iter(answers.split(BATCH))
    yield {
        **job,
        "host": "ONNX Runtime",
        "saturates": bool((full - 255).abs().max() > 2),
        **figures,
        **bed.score(lambda x: next(parts), count),
    }


def on_openvino(bed: Bed, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same file on OpenVINO, which listens to ONEDNN_MAX_CPU_ISA."""
    import openvino

    def compiled(file: Path) -> Callable[[Tensor], Tensor]:
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        network: Any = openvino.compile_model(openvino.Core().read_model(file), "CPU", hints)
        return lambda x: torch.from_numpy(network(x.numpy())[0].copy())

    with tempfile.TemporaryDirectory() as folder:
        path, probe, figures = exported(bed, job, folder)
        full, run = compiled(probe)(PROBE), compiled(path)
    yield {
        **job,
        "host": "OpenVINO",
        "saturates": bool((full - 255).abs().max() > 2),
        **figures,
        **bed.score(run),
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


RUNNERS = {
    "simulated": simulated,
    "fx": in_fx,
    "stock": stock_fx,
    "pt2e": in_pt2e,
    "onnx": on_onnx,
    "openvino": on_openvino,
}
"""Each gives one row or more of a job."""
