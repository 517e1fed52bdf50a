"""Files for devices, each beside the same tool's float file and its stock int8."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.file_figures import answers, latencies, one_by_one, zipped_bytes
from zaq_timm.zoo.hosts import Converted
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
        "zipped_bytes": zipped_bytes(path),
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
