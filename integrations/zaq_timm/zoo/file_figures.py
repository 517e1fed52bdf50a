"""What an exported file is worth, measured on the file: sizes, answers, latency."""

from __future__ import annotations

import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zaq_plugin import archive
from zaq_timm.zoo.evaluation_images import read_set
from zaq_timm.zoo.measure import Model, accuracy, distance, outputs
from zaq_timm.zoo.model_job import Job

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
