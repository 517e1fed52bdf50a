"""The demo's network as files for devices, verified and measured as they run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin import PWLQSpec, archive
from zaq_plugin.report.columns import Column, kilobytes, number
from zaq_timm.deployment import Shipped
from zaq_timm.zoo.settings import DEVICE_HOSTS

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
