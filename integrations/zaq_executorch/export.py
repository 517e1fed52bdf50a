"""`export`: a model as one `.pte` file."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_executorch._compat import SMALL_BATCH
from zaq_executorch.host import HOST, VERBS
from zaq_executorch.kernels import means_outside, with_kernel_grids
from zaq_executorch.lowering import lower
from zaq_executorch.reading import read, runner
from zaq_pt2e.audit import audit
from zaq_pt2e.device.making import DeviceExport, beside, check_batch, sized
from zaq_pt2e.device.verdict import largest, run_graph, tolerance


@dataclass(frozen=True)
class Exported(DeviceExport):
    """What `export` wrote; operators are XNNPACK's.

    Attributes:
        dynamic: Whether it takes batches smaller than the largest.
        outside: Operators outside the delegate.
    """

    dynamic: bool
    outside: Counter[str]

    def _batches(self) -> str:
        return f"up to {self.batch}" if self.dynamic else super()._batches()


def export(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    batch: int = 1,
    calibration: Iterable[Any] | None = None,
    method: Any = None,
    stored_bits: int = 5,
    **options: Any,
) -> Exported:
    """Write a model as a `.pte` file that ExecuTorch runs on XNNPACK's int8 kernels.

    Args:
        model: A float model of images, which is quantized first (data-free, if there is no
            calibration); or one of ours from ``convert_pt2e``. It is not changed.
        example_inputs: What it is called with.
        path: The file to write.
        batch: The largest batch. 1 takes one sample at a time; with more it takes any size from 1
            up to this (or one more: see `Exported.batch`).
        calibration: Batches; of a converted model, for the outputs of layers that have no grid.
        method, stored_bits, **options: How a float model is quantized, see
            `zaq_executorch.quantize`; the method is ``pwlq+gptq`` if None.

    Raises:
        TypeError, ValueError: a model that is not converted, was quantized to narrow activations,
            or has layers that XNNPACK's delegate does not take; a batch that is no size. Nothing is
            written then.
    """
    check_batch(batch, HOST.name)
    ready = VERBS.ready(model, example_inputs, calibration, method, stored_bits, options)
    graph = with_kernel_grids(ready)
    most = batch + 1 if batch == SMALL_BATCH else batch
    example = sized(example_inputs, most)
    dim = torch.export.Dim("batch", min=1, max=most) if batch > 1 else None
    shapes = tuple({0: dim} if isinstance(x, Tensor) and x.dim() > 1 else None for x in example)
    if dim is None:
        data = lower(graph, example, None)
    else:
        data = lower(means_outside(graph), example, shapes)
    with beside(path, data) as part:
        file = read(part)
        if file.unwritten or not file.integer_layers:
            what = "no layer is int8" if not file.integer_layers else "an output is never written"
            raise ValueError(f"executorch: the file would be wrong: {what} in XNNPACK's delegate.")
        if file.batch < batch:
            raise ValueError(
                f"executorch: the file takes batches up to {file.batch}, not {batch}: the model "
                "itself asks for its batch's size. Export it with batch=1."
            )
        _compare(part, graph, [sized(example, 1), example] if dim is not None else [example])
    zipped = len(zlib.compress(data, 9))
    found = (file.batch, audit(graph), file.operators, graph, file.dynamic, file.outside)
    return Exported(os.fspath(path), len(data), zipped, *found)


def _compare(path: Path, graph: GraphModule, examples: list[tuple[Any, ...]]) -> None:
    """Run a file on batches in this order: what it remembers of a small one must not harm.

    Raises:
        ValueError: it does not run, or computes something else than the graph.
    """
    run = runner(path)
    for example in examples:
        try:
            outputs = run(example)
        except ValueError as error:
            raise ValueError(
                f"executorch: the file would not run: {error}. XNNPACK takes operators whose "
                "inputs are int8 in part, and cannot make them; leave the layers around it float."
            ) from error
        apart, allowed = largest(outputs, run_graph(graph, example)), tolerance(graph, example)
        if not apart <= allowed * (1 + 1e-6) + 1e-6:
            raise ValueError(
                f"executorch: with a batch of {len(example[0])} the file's output differs by "
                f"{apart:.3g} from the model's, more than {allowed:.3g}; nothing was written. "
                "Export it with batch=1."
            )
