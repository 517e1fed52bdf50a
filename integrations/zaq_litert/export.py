"""`export`: a model as one `.tflite` file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from zaq_litert.grids import with_kernel_grids
from zaq_litert.host import HOST, VERBS
from zaq_litert.lowering import lower, merged_layers, with_float_interface
from zaq_litert.reading import read, runner
from zaq_pt2e.audit import audit
from zaq_pt2e.device.making import DeviceExport, beside, check_batch, sized

Interface = Literal["float", "int8"]


class Exported(DeviceExport):
    """What `export` wrote; operators are LiteRT's."""


def export(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    batch: int = 1,
    interface: Interface = "float",
    calibration: Iterable[Any] | None = None,
    method: Any = None,
    stored_bits: int = 5,
    **options: Any,
) -> Exported:
    """Write a model as a `.tflite` file that LiteRT runs on int8 kernels.

    Args:
        model: A float model of images, which is quantized first (data-free, if there is no
            calibration); or one of ours from ``convert_pt2e``. It is not changed.
        example_inputs: What it is called with; the file takes images as torch does, (n, C, H, W).
        path: The file to write.
        batch: The batch that it takes.
        interface: ``float`` in- and outputs, or ``int8`` ones, on the grids that the file states.
        calibration: Batches; of a converted model, for the outputs of layers that have no grid.
        method, stored_bits, **options: How a float model is quantized, see
            `zaq_litert.quantize`; the method is ``pwlq+gptq`` if None.

    Raises:
        TypeError, ValueError: a model that is not converted, was quantized to narrow activations,
            or has layers that stay float in the file; a batch that is no size. Nothing is written
            then.
    """
    check_batch(batch, HOST.name)
    if interface not in ("float", "int8"):
        raise ValueError(f"litert: interface must be 'float' or 'int8'; got {interface!r}.")
    ready = VERBS.ready(model, example_inputs, calibration, method, stored_bits, options)
    graph = with_kernel_grids(ready)
    example = sized(example_inputs, batch)
    data = lower(graph, example)
    if interface == "float":
        data = with_float_interface(data)
    records = audit(graph)
    with beside(path, data) as part:
        file = read(part)
        if file.integer_layers < merged_layers(graph):
            raise ValueError(
                f"litert: {len(records.quantized)} layers are quantized, but in the file only "
                f"{file.integer_layers} are int8, {file.float_layers} float: "
                f"{', '.join(sorted(file.operators))}. Leave float what it has no int8 kernel for."
            )
        runner(part)(example)
    zipped = len(zlib.compress(data, 9))
    return Exported(os.fspath(path), len(data), zipped, file.batch, records, file.operators, graph)
