"""Accuracy of shipped files on real images, under stock runtimes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zaq_onnx
from benchmarks.data.tasks import accuracy, logits_of
from benchmarks.deploy.networks import BITS, RUNTIMES, Facts, Network, Runtime
from zaq_onnx.runtimes import ort_session


def accuracies(
    net: Network,
    converted: dict[int, nn.Module],
    files: dict[str, Path],
    folder: Path,
    threads: int,
) -> Facts:
    """Top-1 of everything, also of files whose weights have their whole range."""
    assert net.images is not None
    assert net.labels is not None
    facts: Facts = {
        "images": len(net.labels),
        "fp32_accuracy": accuracy(logits_of(net.model, net.images, 50), net.labels),
        "converted_accuracy": {s: _top1(converted[s], net) for s in BITS},
    }
    whole = {s: folder / f"whole{s}.onnx" for s in BITS}
    for stored, path in whole.items():
        example = (net.batches[0],)
        zaq_onnx.export(converted[stored], example, path, pack=False, calibration=net.batches)
    operators = partial(ort_session, optimize=False, threads=threads)
    facts["operators_accuracy"] = {
        s: _top1(partial(_first, RUNTIMES[0], operators(files[f"int8_{s}"])), net) for s in BITS
    }
    for runtime in RUNTIMES:
        shown = {f"{runtime.name}_accuracy": {s: files[f"packed{s}"] for s in BITS}}
        shown[f"{runtime.name}_whole_accuracy"] = whole
        shown[f"{runtime.name}_stock_accuracy"] = {0: files["stock"]} if "stock" in files else {}
        for key, paths in shown.items():
            facts[key] = {}
            for stored, path in paths.items():
                try:
                    model = runtime.load(path, threads=threads)
                    facts[key][stored] = _top1(partial(_first, runtime, model), net)
                except (RuntimeError, ValueError):
                    continue
    return facts


def _first(runtime: Runtime, model: Any, images: Tensor) -> Any:
    return runtime.run(model, (images,))[0]


@torch.no_grad()
def _top1(run: Callable[[Tensor], Any], net: Network) -> float:
    assert net.images is not None
    assert net.labels is not None
    parts = [torch.from_numpy(np.asarray(run(part))) for part in net.images.split(50)]
    return accuracy(torch.cat(parts), net.labels)
