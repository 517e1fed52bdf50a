"""Where exported files run: every installed runtime on four networks in four forms.

    python -m benchmarks.runtimes --files FOLDER [--node-modules FOLDER]

The forms are the float network, the int8 file, and the files packed to 4 and to 5 stored bits (MAC
bits 3 and 4); the int8 file is the 4-bit file, unpacked. Every figure comes from `zaq_onnx.verify`:
one thread, a batch of one, each runtime in a process of its own. Rows that are there for the same
bytes and the same version are kept; `docs/where_files_run.md` is written from the newest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from benchmarks.runtimes.tables import FORMS, NETWORKS, markdown, put_between_markers

NEEDS = """Needs timm, and the runtimes that are to be asked; those that are not installed are left
out. Takes some minutes to make the files, then about ten seconds a row."""

OUT = RESULTS / "runtimes.jsonl"
PAGE = RESULTS.parents[1] / "docs" / "where_files_run.md"
TIMM: dict[str, dict[str, int]] = {
    "resnet18": {},
    "mobilenetv2_050": {},
    "vit_tiny_patch16_224": {"img_size": 64},
}
BITS = {"packed4": 3, "packed5": 4}
"""MAC bits by form."""

CPU = Path("/proc/cpuinfo")


def network(name: str) -> tuple[nn.Module, list[Tensor], Tensor]:
    """A float network, batches for ranges, and one image to run on."""
    if name == "digits":
        from zaq_timm.digits import digits_model, load_digits_split

        data = load_digits_split()
        return digits_model(), list(data.train_images[:256].split(32)), data.test_images[:1]
    import timm

    torch.manual_seed(0)
    of = next(full for full in TIMM if full.startswith(name))
    model = timm.create_model(of, num_classes=16, **TIMM[of]).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            mean, variance = module.running_mean, module.running_var
            assert mean is not None and variance is not None  # noqa: PT018
            for value in (module.bias, mean):
                nn.init.normal_(value, 0, 0.1, generator=generator)
            for value in (module.weight, variance):
                nn.init.uniform_(value, 0.5, 1.5, generator=generator)
    images = torch.randn(17, 3, 64, 64, generator=generator)
    return model, list(images[:16].split(4)), images[16:]


def make(name: str, folder: Path) -> None:
    """Every form of a network, and its input, as files, unless they are there."""
    import zaq_onnx
    from zaq_plugin import PWLQSpec
    from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate

    if (folder / "input.npz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model, batches, image = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (batches[0],),
            str(folder / "float.onnx"),
            dynamo=True,
            opset_version=21,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    for form, bits in BITS.items():
        student = simulate(fold_batch_norm(model, (batches[0],)), PWLQSpec(bits=bits))
        calibrate(student, batches)
        path = folder / f"{form}.onnx"
        zaq_onnx.export(student, (batches[0],), path, calibration=batches, reduce_range=True)
    zaq_onnx.unpack(folder / "packed4.onnx", folder / "int8.onnx")
    np.savez(folder / "input.npz", input=image.numpy())


def identity(row: dict[str, Any]) -> tuple[str, ...]:
    """What tells a row from others."""
    return tuple(str(row[name]) for name in ("network", "form", "runtime", "version", "sha256"))


def measure(name: str, form: str, runtime: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    import zaq_onnx

    folder = args.files / name
    with np.load(folder / "input.npz") as stored:
        image = stored["input"]
    verdict = zaq_onnx.verify(
        folder / f"{form}.onnx",
        None,
        (image,),
        runtimes=(runtime,),
        isolated=True,
        float_file=None if form == "float" else folder / "float.onnx",
        seconds=args.seconds,
        timeout=args.timeout,
        node_modules=args.node_modules,
    )
    (report,) = verdict.runtimes
    return {
        "state": report.state,
        "message": report.message,
        "steps": report.steps,
        "allowed": verdict.tolerance / report.error * report.steps if report.error else None,
        "integer_layers": report.integer_layers,
        "float_layers": report.float_layers,
        "load_seconds": report.load_seconds,
        "milliseconds": report.milliseconds,
        "float_milliseconds": report.float_milliseconds,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure what is missing, then write the tables."""
    import zaq_onnx

    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--files", type=Path, required=True, help="folder for the files")
    parser.add_argument("--node-modules", type=Path, help="where npm put ONNX Runtime's packages")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--runtimes", nargs="+", default=list(zaq_onnx.ADAPTERS))
    parser.add_argument("--seconds", type=float, default=0.5, help="to time a file for")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for a runtime")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    vnni = "vnni" in CPU.read_text() if CPU.exists() else None
    done = {identity(row) for row in read_rows(args.out)}
    for name in args.networks:
        make(name, args.files / name)
        for form in args.forms:
            data = (args.files / name / f"{form}.onnx").read_bytes()
            for runtime in args.runtimes:
                version = zaq_onnx.ADAPTERS[runtime](args.node_modules).installed()
                row = {
                    "network": name,
                    "form": form,
                    "runtime": runtime,
                    "version": version,
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "bytes": len(data),
                    "vnni": vnni,
                }
                if version is None or identity(row) in done:
                    continue
                row |= measure(name, form, runtime, args)
                append_row(args.out, row)
                print(json.dumps(row), flush=True)
                write_tables(args.out, args.page)
    write_tables(args.out, args.page)
    return 0


def write_tables(rows: Path, page: Path) -> None:
    """The Markdown beside the rows, and the generated part of the page."""
    text = markdown(read_rows(rows))
    rows.with_suffix(".md").write_text(f"# Where files run\n\n{text}", encoding="utf-8")
    put_between_markers(page, text)
