"""The demo's network as files that runtimes take: ONNX, and files for devices; verified, measured.

The model that a host converted to int8 is exported, packed to its stored bits, and verified: the
weights bit for bit, the outputs under ONNX Runtime and, where it is installed, OpenVINO.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin import PWLQSpec, archive
from zaq_plugin.report.columns import Column, kilobytes, number
from zaq_timm.zoo.settings import DEVICE_HOSTS

FILE = "digits.onnx"
VERIFIED_IMAGES = 64


@dataclass(frozen=True)
class Shipped:
    """An exported network.

    Attributes:
        path: The file.
        bytes: Its size.
        int8_bytes: Its size with int8 weights.
        float_bytes: Bytes of its weights and biases in float32.
        integer_only: Whether ONNX Runtime computes in integers from end to end.
        runtimes: Who ran it.
        integer_layers: Convolutions and linear layers on int8 kernels of ONNX Runtime.
    """

    path: Path
    bytes: int
    int8_bytes: int
    float_bytes: int
    integer_only: bool
    runtimes: tuple[str, ...]
    integer_layers: int

    def __str__(self) -> str:
        whole = "nothing but integers between" if self.integer_only else "floats between some"
        return (
            f"{self.path.name}: {self.bytes / 1000:.1f} kB packed, {self.int8_bytes / 1000:.1f} kB "
            f"as int8, {self.float_bytes / 1000:.1f} kB as float32; verified under "
            f"{' and '.join(self.runtimes)}, {self.integer_layers} layers on int8 kernels, "
            f"{whole} layers"
        )


def ship(converted: nn.Module, images: Tensor, out: Path, batches: Sequence[Tensor]) -> Shipped:
    """Exports a converted model, verifies the file, and returns what there is to say.

    Args:
        converted: from a host.
        images: what to verify on.
        out: the folder to write to.
        batches: calibration images, for tensors that the host left in float.

    Raises:
        ImportError: onnx, onnxscript or ONNX Runtime is missing.
        ValueError: the file does not compute what the model does.
    """
    import zaq_onnx

    runtimes = ("onnxruntime", "openvino") if find_spec("openvino") else ("onnxruntime",)
    path = out / FILE
    exported = zaq_onnx.export(
        converted, (batches[0],), path, calibration=batches, reduce_range=True
    )
    report = zaq_onnx.verify(path, converted, images[:VERIFIED_IMAGES], runtimes=runtimes).require()
    return Shipped(
        path,
        exported.bytes,
        exported.int8_bytes,
        exported.float_bytes,
        report.integer_only,
        tuple(run.name for run in report.runtimes),
        report.runtimes[0].integer_layers,
    )


SIZES = {"kB": "bytes", "kB zipped": "zipped bytes", "kB by zaq-quantize pack": "packed bytes"}
"""Of a file, as the page heads them."""


def tool_of(kind: str) -> Any:
    """The integration that writes such files.

    Raises:
        ImportError: Its tool is not installed; the text says what to do.
    """
    return importlib.import_module(f"zaq_{DEVICE_HOSTS[kind]}")


def write_device_file(
    kind: str,
    model: nn.Module,
    batches: list[Tensor],
    images: Tensor,
    labels: Tensor,
    folder: Path,
) -> tuple[list[Path], dict[str, Any], str]:
    """Writes the network with 4-bit PWLQ weights (5 stored bits), and the file's archive.

    Args:
        kind: A key of `DEVICE_HOSTS`.
        model: The float network.
        batches: Calibration images.
        images: Held-out images, and their classes.
        labels: See above.
        folder: Where to.

    Returns:
        What was written, what was measured, and that in a sentence.
    """
    import zaq_pt2e

    tool, one = tool_of(kind), (images[:1].contiguous(),)
    running = importlib.import_module(f"zaq_{DEVICE_HOSTS[kind]}.reading")
    prepared = tool.prepare(model, one, PWLQSpec(bits=4))
    zaq_pt2e.calibrate(prepared, batches)
    path = folder / f"model.{kind}"
    exported = tool.export(tool.convert(prepared), one, path)
    report = tool.verify(path, exported.model, images[:8].contiguous()).require()
    run = running.runner(path)
    top = torch.cat([run((x[None].contiguous(),))[0] for x in images]).argmax(1)
    right = 100 * (top == labels).double().mean().item()
    packed = archive.pack(path)
    facts = {
        "bytes": packed.file_bytes,
        "zipped bytes": packed.zipped_bytes,
        "packed bytes": packed.bytes,
        "integer layers": report.integer_layers,
        "runtime": report.runtime,
        "top-1": right,
    }
    sizes = [f"{n / 1000:.1f} kB" for n in (packed.file_bytes, packed.zipped_bytes, packed.bytes)]
    text = (
        f"{path.name}: {sizes[0]}, {sizes[1]} zipped, {sizes[2]} by zaq-quantize pack; "
        f"{report.integer_layers} layers in int8 under {report.runtime}; the file's top-1 is "
        f"{right:.2f} %"
    )
    return [path, Path(packed.path)], facts, text


def file_columns(shipped: Shipped, measured: Sequence[Mapping[str, Any]]) -> list[Column]:
    """What the page says of the files that runtimes take: sizes, and top-1 as they run.

    Args:
        shipped: The ONNX file.
        measured: What `write_device_file` has measured, and the name of the ``file``.
    """
    onnx = {
        "file": shipped.path.name,
        "bytes": shipped.bytes,
        "integer layers": shipped.integer_layers,
        "runtime": " and ".join(shipped.runtimes),
    }
    rows = [onnx, *measured]
    columns = [_texts("File", [str(row["file"]) for row in rows])]
    for title, key in SIZES.items():
        sizes = [row.get(key) for row in rows]
        if any(sizes):
            columns.append(Column(title, title, kilobytes(sizes), list(sizes)))
    for title, key, places in (("int8 layers", "integer layers", 0), ("Top-1 (%)", "top-1", 2)):
        values = [row.get(key) for row in rows]
        if any(value is not None for value in values):
            cells = [number(value, places) for value in values]
            columns.append(Column(title, title, cells, list(values)))
    return [*columns, _texts("Runtime", [str(row["runtime"]) for row in rows])]


def _texts(title: str, cells: list[str]) -> Column:
    return Column(title, title, cells, list(cells), numeric=False)
