"""The converted model as a file, and what the file is worth: sizes, answers, latency."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_plugin import archive
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.hosts import Converted
from zaq_timm.zoo.images import read_set
from zaq_timm.zoo.measure import Model, accuracy, distance, outputs
from zaq_timm.zoo.model_job import Job
from zaq_timm.zoo.settings import DEVICE_HOSTS


def write_device_file(kind: str, job: Job, converted: Converted, folder: Path) -> dict[str, Any]:
    """Writes and verifies a file that takes one image at a time, and measures it.

    Args:
        kind: ``pte`` or ``tflite``.
        job: the float model, images, settings.
        converted: the converted model.
        folder: where to.

    Returns:
        What `file_figures` measures, of ours and of the tool's own files; what was verified.

    Raises:
        LeftOut: the tool is not installed.
        ValueError: the tool does not take the model, or the file does not compute what it does.
    """
    try:
        tool = importlib.import_module(f"zaq_{DEVICE_HOSTS[kind]}")
        peers = importlib.import_module(f"zaq_{DEVICE_HOSTS[kind]}.lowering")
        running = importlib.import_module(f"zaq_{DEVICE_HOSTS[kind]}.reading")
    except ImportError as error:
        raise LeftOut(f"{kind} export: {error}") from error
    path = folder / f"model.{kind}"
    example = (job.images.test[:1].clone(),)
    calibration = [x[None] for x in job.images.calibration[: job.settings.calibration_images]]
    written = tool.export(converted.model, example, path, calibration=calibration)
    checked = tool.verify(path, written.model, job.images.test[:4].clone())
    if not checked.ok:
        raise ValueError(f"{kind} export: {'; '.join(checked.problems)}")
    run = running.runner(path)
    facts: dict[str, Any] = {
        "file": path.name,
        "bytes": path.stat().st_size,
        **sizes(path),
        "integer_layers": checked.integer_layers,
        "float_layers": checked.float_layers,
        "outside": dict(checked.outside),
        "largest_difference": checked.error,
        "remarks": checked.remarks,
        **answers(job, one_by_one(run)),
    }
    runs = {"ours": run}
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("float", "stock"):
            other = Path(temporary, f"{name}.{kind}")
            try:
                if name == "float":
                    peers.write_float(job.loaded.model, example, other)
                else:
                    peers.write_stock(job.loaded.model, example, calibration, other)
                runs[name] = running.runner(other)
                runs[name](example)
            except ValueError as error:
                runs.pop(name, None)
                facts["remarks"] = [*facts["remarks"], f"the tool's {name} file: {error}"]
                continue
            facts[f"{name}_bytes"] = other.stat().st_size
            facts[f"{name}_zipped_bytes"] = zipped_bytes(other)
        for name, ms in latencies(runs, example[0]).items():
            facts["ms" if name == "ours" else f"{name}_ms"] = ms
    return facts


def export_model(
    kind: str, converted: Converted, images: Tensor, folder: Path, job: Job | None = None
) -> dict[str, Any]:
    """Writes the model into a folder.

    Args:
        kind: ``onnx``, ``pt2``, or one of `DEVICE_HOSTS`.
        converted: the converted model, with its layers.
        images: to trace it with; of the batch size that it takes, if it takes one only.
        folder: where to.
        job: the float model and its images, which files for devices are compared with.

    Returns:
        The file's name and bytes, how the runtime compares with it where that was checked, and
        ``remarks``: what was changed for the runtime's sake and how far that moves the output.

    Raises:
        LeftOut: what the format needs is not installed.
        ValueError: the file does not compute what the model computes.
    """
    if kind in DEVICE_HOSTS:
        assert job is not None
        return write_device_file(kind, job, converted, folder)
    return EXPORTERS[kind](converted, images, folder)


def _to_pt2(converted: Converted, images: Tensor, folder: Path) -> dict[str, Any]:
    path = folder / "model.pt2"
    shapes = None if converted.fixed_batch else ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(converted.model, (images,), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return {"file": path.name, "bytes": path.stat().st_size}


def _to_onnx(converted: Converted, images: Tensor, folder: Path) -> dict[str, Any]:
    """Packed, and run by ONNX Runtime beside the model."""
    try:
        import zaq_onnx
    except ImportError as error:
        raise LeftOut(f"ONNX export: {error}") from error
    path = folder / "model.onnx"
    model = _for_x86(converted.model)
    written = zaq_onnx.export(
        model,
        (images,),
        path,
        dynamic_batch=converted.fixed_batch is None,
        audit=converted.layers,
        calibration=None if converted.ranges is None else converted.ranges.split(len(images)),
        reduce_range=True,  # whoever runs the zoo's files need not have VNNI
    )
    checked = zaq_onnx.verify(path, model, (images,), runtimes=("onnxruntime",))
    if not checked.ok:
        raise ValueError(f"ONNX export: {'; '.join(checked.problems)}")
    (report,) = checked.runtimes
    return {
        "file": path.name,
        "bytes": written.bytes,
        "int8_bytes": written.int8_bytes,
        "packed": checked.packed,
        "largest_difference": report.error,
        "remarks": checked.remarks,
        "integer_layers": report.integer_layers,
        "float_layers": report.float_layers,
    }


def _for_x86(model: nn.Module) -> nn.Module:
    """The model, or that of a device's host with uint8 activations, which these runtimes fuse."""
    if not isinstance(model, GraphModule) or not any(
        "quantized_decomposed" in str(n.target) for n in model.graph.nodes
    ):
        return model
    from zaq_pt2e.device.signed import to_uint8

    return to_uint8(model)


EXPORTERS = {"pt2": _to_pt2, "onnx": _to_onnx}
"""Kind to function; a new kind is a function and a line here (and a choice in the settings)."""


REPEATS, WARM = 30, 3
"""Runs of each file, which take turns, and how many of them count for nothing."""

Run = Callable[[tuple[Tensor, ...]], list[Tensor]]


def one_by_one(run: Run) -> Model:
    """A file that takes one image at a time, for batches of any size."""

    def call(images: Tensor) -> list[Tensor]:
        rows = [run((x[None].contiguous(),)) for x in images]
        return [torch.cat(column) for column in zip(*rows, strict=True)]

    return call


def onnx_runner(path: Path) -> Run:
    """A file under ONNX Runtime, one thread."""
    from zaq_onnx.runtimes import ort_session, run_ort

    session = ort_session(path)
    return lambda inputs: [torch.from_numpy(x) for x in run_ort(session, inputs)]


def answers(job: Job, model: Model) -> dict[str, Any]:
    """How a file agrees with the float model: on held-back synthetic images, and on ``eval``."""
    floats = outputs(job.loaded.model, job.images.test, job.settings.batch)
    gap = distance(floats, outputs(model, job.images.test, job.settings.batch))
    figures: dict[str, Any] = {"agreement": gap.agreement, "agreement_images": gap.images}
    if job.settings.eval:
        classes = floats[0].shape[1] if floats[0].dim() == 2 else None
        settings = job.settings
        images = read_set(settings.eval, classes, settings.eval_images, settings.seed)
        batches = images.batches(job.loaded.inputs, settings.batch)
        seen = accuracy(job.loaded.model, model, batches)
        figures |= {
            "top1": seen.top1,
            "eval_agreement": seen.agreement,
            "eval_images": seen.images,
        }
    return figures


def latencies(runs: Mapping[str, Run], image: Tensor) -> dict[str, float]:
    """Median milliseconds of one image; the files take turns."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(WARM + REPEATS):
        for name, run in runs.items():
            begin = time.perf_counter()
            run((image,))
            spent[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values[WARM:]) for name, values in spent.items()}


def zipped_bytes(path: Path) -> int:
    """A file's size as a store sends it (deflate)."""
    return len(zlib.compress(path.read_bytes(), 9))


def sizes(path: Path) -> dict[str, int | None]:
    """A file's size zipped, and of what ``zaq-quantize pack`` makes of it: None if nothing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            packed = archive.pack(path, Path(folder, "model.zaq"))
        except ValueError:  # of a kind that cannot be packed
            return {"zipped_bytes": zipped_bytes(path), "archive_bytes": None}
    return {"zipped_bytes": packed.zipped_bytes, "archive_bytes": packed.bytes}


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for every file of a run, for people."""
    for row in rows:
        for file in row.get("files", ()):
            text = f"{row['key']}: {file['file']} {file['bytes'] / 1000:,.1f} kB"
            text += f", zipped {file.get('zipped_bytes', 0) / 1000:,.1f}"
            if file.get("archive_bytes"):
                text += f", packed {file['archive_bytes'] / 1000:,.1f}"
            for other in ("float", "stock"):
                if file.get(f"{other}_bytes"):
                    sizes = [file[f"{other}_{x}bytes"] / 1000 for x in ("", "zipped_")]
                    text += f" ({other} {sizes[0]:,.1f}, zipped {sizes[1]:,.1f})"
            if file.get("ms"):
                text += f"; {file['ms']:.2f} ms"
                others = [o for o in ("float", "stock") if file.get(f"{o}_ms")]
                named = ", ".join(f"{o} {file[f'{o}_ms']:.2f}" for o in others)
                text += f" ({named})" if named else ""
            if file.get("agreement") is not None:
                text += f"; the file agrees with the float model on {file['agreement']:.1f} %"
                text += f" of {_count(file, 'agreement_images')}synthetic images"
            if file.get("eval_agreement") is not None:
                of = f"your {_count(file, 'eval_images')}images"
                text += f", {file['eval_agreement']:.1f} % of {of}"
                text += f" (top-1 {file['top1']:.2f} %)"
            yield text


def _count(file: Mapping[str, Any], name: str) -> str:
    return f"{file[name]} " if file.get(name) else ""
