"""One measurement in a process of its own: ``python rows.py ROW --data DIR`` prints JSON.

The package that is measured is the one that PYTHONPATH names; see run.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# The benchmarks are this tree's, whatever build is measured.
sys.modules["benchmarks"] = ModuleType("benchmarks")
sys.modules["benchmarks"].__path__ = [str(Path(__file__).resolve().parents[1])]
from benchmarks.data.tasks import (  # noqa: E402
    CIFAR_MEAN,
    CIFAR_STD,
    LOADERS,
    Task,
    accuracy,
    logits_of,
)

Row = dict[str, Any]


@contextmanager
def measured(row: Row) -> Iterator[None]:
    """Adds processor and wall seconds of what is inside."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    row["cpu"] = time.process_time() - cpu
    row["wall"] = time.perf_counter() - wall


def agreement(task: Task, student: nn.Module, count: int = 5000) -> float:
    """Share of test images, percent, whose top class is the float model's."""
    images = task.images[:count]
    expected = logits_of(task.model, images, 200).argmax(1)
    return accuracy(logits_of(student, images, 200), expected)


def quantized(
    task: Task, strategy: str, bits: tuple[int, int], seed: int = 0, **request: Any
) -> Row:
    """A strategy on a task's model: time of all of it, and agreement."""
    from zaq_plugin.strategies import Request, apply

    imagenet = task.name == "imagenet"
    row: Row = {}
    asked = Request(
        *bits,
        example_inputs=(task.images[:2],),
        mean=(0.5,) * 3 if imagenet else CIFAR_MEAN,
        std=(0.5,) * 3 if imagenet else CIFAR_STD,
        seed=seed,
        **request,
    )
    with measured(row):
        applied = apply(strategy, task.model, asked)
    row["stages"] = {k: round(v, 2) for k, v in applied.stages.items()}
    row["agreement"] = agreement(task, applied.model)
    row["notes"] = applied.notes[-1:]
    return row


def gptq(data: Path, seed: int) -> Row:
    """pwlq+gptq 4/4 of ResNet-20, 384 images at hand."""
    task = LOADERS["cifar10"](data)
    assert task.train is not None
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
    return quantized(task, "pwlq+gptq", (4, 4), seed, images=task.train[order[:384]])


def zaq(name: str, bits: tuple[int, int], count: int) -> Callable[[Path, int], Row]:
    """zaq of a task's model, so many images made."""

    def measure(data: Path, seed: int) -> Row:
        return quantized(LOADERS[name](data), "zaq", bits, seed, synthetic_count=count)

    return measure


def memory(data: Path, seed: int) -> Row:
    """Peak memory of zaq 4/8 on a ResNet-50 at 224 px, 64 images: as few steps as there can be."""
    import timm

    from zaq_plugin.strategies import Request, apply

    torch.manual_seed(seed)
    model = timm.create_model("resnet50", pretrained=False, zero_init_last=False).eval()
    example = (torch.randn(2, 3, 224, 224),)
    row: Row = {}
    with measured(row):
        apply("zaq", model, Request(4, 8, example_inputs=example, synthetic_count=64, effort=0.01))
    return row


def made_images(name: str, count: int) -> Callable[[Path, int], Row]:
    """Images from BatchNorm statistics; agreement of what they calibrate (pwlq 4/8)."""

    def measure(data: Path, seed: int) -> Row:
        from zaq_plugin.strategies import Request, synthetic_images

        task = LOADERS[name](data)
        imagenet = name == "imagenet"
        asked = Request(
            4,
            8,
            example_inputs=(task.images[:2],),
            mean=(0.5,) * 3 if imagenet else CIFAR_MEAN,
            std=(0.5,) * 3 if imagenet else CIFAR_STD,
            seed=seed,
            synthetic_count=count,
        )
        row: Row = {}
        with measured(row):
            images = synthetic_images("pwlq", task.model, asked)
        assert images is not None
        calibrated = quantized(task, "pwlq", (4, 8), seed, images=images)
        return {**row, "agreement": calibrated["agreement"]}

    return measure


def bias(data: Path, seed: int) -> Row:
    """Bias correction of a ResNet-50 at 64 px: 16 images, 12 MiB for what waits.

    It is a small stand-in for 384 images at 224 px and 1 to 3 GiB: 192 times the operations.
    """
    import timm

    from zaq_plugin.ptq import calibrate, correct_bias, simulate
    from zaq_plugin.pwlq import UniformSpec

    torch.manual_seed(seed)
    model = timm.create_model("resnet50", pretrained=False).eval()
    images = torch.randn(16, 3, 64, 64)
    student = simulate(model, UniformSpec(4), 8, example_inputs=(images[:2],))
    calibrate(student, [images[:4]])
    row: Row = {}
    with measured(row):
        correct_bias(student, images.split(4), memory=12 << 20)
    return row


def weights_of_resnet50() -> list[Tensor]:
    """Its 25.5 million convolution and linear weights, randomly initialised."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet50", pretrained=False)
    kinds = nn.Conv2d | nn.Linear
    return [m.weight.detach() for m in model.modules() if isinstance(m, kinds)]


def solved(policy: str) -> Callable[[Path, int], Row]:
    """Quantizing a ResNet-50's weights, beside torch's fused operator with scales given."""

    def measure(data: Path, seed: int) -> Row:
        from zaq_plugin.pwlq import PWLQSpec, quantize

        weights = weights_of_resnet50()
        scales = [w.flatten(1).abs().amax(1) / 7 for w in weights]
        zeros = [torch.zeros_like(s, dtype=torch.int32) for s in scales]
        spec: Any = PWLQSpec(policy=policy)  # type: ignore[arg-type]
        row: Row = {}
        yard: Row = {}
        for _ in range(2):  # the first one warms up
            with measured(yard):
                for w, s, z in zip(weights, scales, zeros, strict=True):
                    torch.fake_quantize_per_channel_affine(w, s, z, 0, -7, 7)
            with measured(row):
                for w in weights:
                    quantize(w, spec)
        return {**row, "yardstick": yard["cpu"], "ratio": row["cpu"] / yard["cpu"]}

    return measure


def in_host(name: str, what: str) -> Callable[[Path, int], Row]:
    """Conversion after calibration, or a training step, beside the host's own 8-bit quantizers."""

    def measure(data: Path, seed: int) -> Row:
        import timm

        from benchmarks.hosts import speed as hosts

        torch.manual_seed(seed)
        # Zero gammas, with which timm starts residual blocks, turn the stock models' output to NaN.
        model = timm.create_model("resnet18", pretrained=False, zero_init_last=False).eval()
        host = getattr(hosts, name)(model, torch.randn(8, 3, 64, 64))
        row: Row = {}
        yard: Row = {}
        if what == "convert":
            students = {pwlq: host.prepared(pwlq, qat=False) for pwlq in (True, False)}
            with measured(yard):
                host.convert(students[False], False)
            with measured(row):
                host.convert(students[True], True)
        else:
            students = {pwlq: host.prepared(pwlq, qat=True) for pwlq in (True, False)}
            steps = {pwlq: hosts.training_step(m, host.images) for pwlq, m in students.items()}
            taken: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(6):
                for pwlq, step in steps.items():
                    one: Row = {}
                    with measured(one):
                        step()
                    taken[pwlq].append(one["cpu"])
            row["cpu"], yard["cpu"] = (statistics.median(taken[p][1:]) for p in (True, False))
        return {**row, "yardstick": yard["cpu"], "ratio": row["cpu"] / yard["cpu"]}

    return measure


def packing(data: Path, seed: int) -> Row:
    """What `zaq_onnx.export` does once it has the graph of a ResNet-50: records, packing, the file.

    The time of `zaq_onnx.pack` of the same model's file is noted beside, and what was written.
    """
    import hashlib
    import importlib
    import tempfile

    import timm

    import zaq_onnx
    from zaq_plugin.ptq import calibrate, simulate
    from zaq_plugin.pwlq import PWLQSpec

    torch.manual_seed(seed)
    model = timm.create_model("resnet50", pretrained=False).eval()
    images = torch.randn(2, 3, 64, 64)
    student = simulate(model, PWLQSpec(), 8, example_inputs=(images,))
    calibrate(student, [images])
    exporting: Any = importlib.import_module("zaq_onnx.export")
    made = exporting.graph_of(student, (images,))
    exporting.graph_of = lambda *_, **__: made
    row: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        packed, plain, again = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        with measured(row):
            zaq_onnx.export(student, (images,), packed, check=False)
        zaq_onnx.unpack(packed, plain)
        one: Row = {}
        with measured(one):
            zaq_onnx.pack(plain, again)
        row["pack_cpu"] = one["cpu"]
        row["sha256"] = hashlib.sha256(packed.read_bytes()).hexdigest()
    return row


ROWS: dict[str, Callable[[Path, int], Row]] = {
    "gptq": gptq,
    "zaq": zaq("cifar10", (4, 4), 256),
    "zaq-2-4": zaq("cifar10", (2, 4), 256),
    "zaq-mobilenet": zaq("imagenet", (4, 8), 16),
    "zaq-memory": memory,
    "images-cifar10": made_images("cifar10", 64),
    "images-imagenet": made_images("imagenet", 16),
    "bias": bias,
    "closed-form": solved("gaussian"),
    "joint": solved("joint"),
    "convert-pt2e": in_host("PT2E", "convert"),
    "convert-fx": in_host("FX", "convert"),
    "qat-pt2e": in_host("PT2E", "step"),
    "qat-fx": in_host("FX", "step"),
    "pack": packing,
}


def main() -> None:
    """Measure one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    row = ROWS[args.row](args.data, args.seed)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(row))


if __name__ == "__main__":
    main()
