"""The demo's network as files for devices, verified and measured as they run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin import PWLQSpec, archive
from zaq_timm.zoo.settings import DEVICE_HOSTS


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
    running = importlib.import_module(f"zaq_{DEVICE_HOSTS[kind]}.running")
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
        "top-1": right,
    }
    sizes = [f"{n / 1000:.1f} kB" for n in (packed.file_bytes, packed.zipped_bytes, packed.bytes)]
    text = (
        f"{path.name}: {sizes[0]}, {sizes[1]} zipped, {sizes[2]} by zaq-quantize pack; "
        f"{report.integer_layers} layers in int8 under {report.runtime}; the file's top-1 is "
        f"{right:.2f} %"
    )
    return [path, Path(packed.path)], facts, text
