"""The demo: one real model on real images, quantized in several formats and reported.

Stages run in the order of `STAGES`; each takes the run and adds to it. A new stage (fine-tuning,
export) is a function and one more line there.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.report import Figure, Manifest, ResultRow, write_page
from zaq_timm.checkpoint import save_checkpoint
from zaq_timm.demo_files import Shipped, file_columns, ship, tool_of, write_device_file
from zaq_timm.demo_page import (
    CALIBRATION_IMAGES,
    EVALUATION,
    FLOAT_LEVELS,
    HOST_NAMES,
    LEAD,
    PROTOCOL,
    SAFE,
    TENSORS,
    UNSAFE,
    demo_figures,
)
from zaq_timm.digits import DigitsSplit, load_digits_split, separable_model
from zaq_timm.doctor.machine import warning
from zaq_timm.formats import compared
from zaq_timm.hosts import CONVERTED, Host, Quantized, float_bytes, percent, simulated, sqnr
from zaq_timm.recovery import ACTIVATIONS, DATA_FREE, SPEC, recover, recovery_figures

BATCH = 128
KEPT = ("PWLQ", 4, 8)
"""Format and widths of the checkpoint that the demo hands back: the paper's, chosen beforehand."""

PAGE, MANIFEST = "report.html", "manifest.json"
CONVERTED_WIDTHS = ((4, 8), (4, 4))


def nothing(_: str) -> None:
    """Stands in for a progress bar."""


@dataclass
class DemoRun:
    """One run of the demo: its settings, and what its stages have made so far.

    Attributes:
        out: the folder to write to; it exists.
        seed: what draws the calibration images.
        host: who converts to int8, a key of `zaq_timm.hosts.CONVERTED`.
        step: told the name of each step as it begins.
        manifest: everything the run knows about itself.
        files: what was written, in order.
        figures: what stages add to the page.
        notes: what a reader of the table must know about this machine.
        split: the images.
        model: the float model, BatchNorm folded.
        top: the float model's top class of each held-out image.
        batches: calibration images.
        kept: the quantized model that the run hands back.
        converted: the same, converted to int8 by the host.
        shipped: the ONNX file.
        measured: what was measured on the files for devices.
        exports: kinds of files for devices, keys of `zaq_timm.zoo.settings.DEVICE_HOSTS`.
    """

    out: Path
    seed: int = 0
    host: str = "fx"
    step: Callable[[str], None] = nothing
    manifest: Manifest = field(default_factory=Manifest)
    files: list[Path] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    split: DigitsSplit = field(init=False)
    model: nn.Module = field(init=False)
    top: Tensor = field(init=False)
    batches: list[Tensor] = field(init=False)
    kept: Quantized = field(init=False)
    converted: nn.Module = field(init=False)
    shipped: Shipped = field(init=False)
    measured: list[dict[str, Any]] = field(default_factory=list)
    exports: tuple[str, ...] = ()


def load(run: DemoRun) -> None:
    """Loads model and images, folds BatchNorm, draws the calibration images."""
    run.step("loading the network")
    with run.manifest.stage("load and fold BatchNorm") as facts:
        run.split = load_digits_split()
        model = separable_model()
        run.model = fold_batch_norm(model, (run.split.train_images[:1],))
        generator = torch.Generator().manual_seed(run.seed)
        order = torch.randperm(len(run.split.train_images), generator=generator)
        chosen = run.split.train_images[order[:CALIBRATION_IMAGES]]
        run.batches = list(chosen.split(BATCH))
        with torch.no_grad():
            before, after = model(run.split.test_images), run.model(run.split.test_images)
        facts["folded"] = len(run.model.zaq_folding.folded)  # type: ignore[union-attr, arg-type]
        facts["largest change of a logit by folding"] = (before - after).abs().max().item()
    run.top = after.argmax(1)
    right = percent(run.top == run.split.test_labels)
    size = 4 * sum(p.numel() for p in run.model.parameters())
    run.manifest.results.append(
        ResultRow("FP32", 32, 32, 32, 32, size, top1=right, agreement=100.0, protocol={})
    )


def quantize_all(run: DemoRun) -> None:
    """Quantizes in every format at every width, and measures on the held-out images."""
    for name, spec, width in compared():
        run.step(f"{name}, W{spec.mac_bits}A{width.activations}")
        host = partial(simulated, per_tensor=width.per_tensor)
        stated = {"granularity": TENSORS} if width.per_tensor else {}
        _quantize_one(run, name, spec, width.activations, host, stated)


def convert_all(run: DemoRun) -> None:
    """Converts to int8 what the hosts can run, and measures the converted models.

    Where the processor's kernels saturate, a footnote says that these levels cannot, and one more
    row what levels do that can.
    """
    stated = {"quantized model": HOST_NAMES[run.host]}
    note = warning("torch") if run.host == "fx" else None
    if note is not None:
        run.notes.append(f"{note}. The demo's PWLQ levels never do (overflow='pairs').")
    for weights, activations in CONVERTED_WIDTHS:
        name = f"PWLQ, converted ({run.host})"
        run.step(f"{name}, W{weights}A{activations}")
        kernels = {} if note is None else {"int8 kernels": SAFE}
        host = CONVERTED[run.host]
        _quantize_one(run, name, PWLQSpec(bits=weights), activations, host, stated | kernels)
        if note is not None:
            spec = PWLQSpec(bits=weights, overflow="allowed")
            unsafe = stated | {"levels": UNSAFE}
            _quantize_one(run, name + ", unguarded", spec, activations, host, unsafe)


def recover_without_data(run: DemoRun) -> None:
    """Quantizes to W4A4 per tensor without any image, and fine-tunes without any image."""
    run.step("zero-shot fine-tuning, W4A4")
    with run.manifest.stage("zero-shot fine-tuning") as facts:
        begin = time.perf_counter()
        recovery = recover(run.model, run.seed)
        seconds = time.perf_counter() - begin
        facts["kept state"] = recovery.result.best.label if recovery.result.best else "untrained"
        facts["seconds"] = recovery.result.seconds
    stated = {"calibration": DATA_FREE, "granularity": TENSORS}
    name = "uniform, best clip, per tensor, data-free"
    _record(run, name, SPEC, ACTIVATIONS, recovery.before, stated, None)
    _record(run, name + ", zero-shot", SPEC, ACTIVATIONS, recovery.after, stated, seconds)
    run.figures += recovery_figures(recovery.result)


def _quantize_one(
    run: DemoRun,
    method: str,
    spec: QuantSpec,
    activations: int,
    host: Host,
    stated: Mapping[str, str],
) -> None:
    begin = time.perf_counter()
    name = f"{method}, W{spec.mac_bits}A{activations}"
    with run.manifest.stage("quantize " + name, host=stated.get("quantized model")) as facts:
        result = host(run.model, spec, activations, run.batches)
        seconds = time.perf_counter() - begin
        facts["layers quantized"] = len(result.layers.quantized)
        facts["layers left alone"] = len(result.layers.skipped)
    _record(run, method, spec, activations, result, stated, seconds)
    if method == f"PWLQ, converted ({run.host})" and (spec.mac_bits, activations) == KEPT[1:]:
        run.converted = result.model
    if (method, spec.mac_bits, activations) == KEPT:
        run.kept = result
        run.manifest.layers = result.layers
        run.manifest.ranges = {name: list(bounds) for name, bounds in result.ranges.items()}


def _record(
    run: DemoRun,
    method: str,
    spec: QuantSpec,
    activations: int,
    result: Quantized,
    stated: Mapping[str, str],
    seconds: float | None,
) -> None:
    """Measures a quantized model on the held-out images; one row of the table."""
    name = f"{method}, W{spec.mac_bits}A{activations}"
    with torch.no_grad():
        top = result.model(run.split.test_images).argmax(1)
    run.manifest.specs[name] = {"weights": spec.to_json(), "activations": activations}
    run.manifest.audits[name] = result.layers
    run.manifest.results.append(
        ResultRow(
            method,
            spec.mac_bits,
            spec.stored_bits,
            activations,
            activations,
            result.layers.stored_bytes + float_bytes(run.model, result),
            sqnr_db=sqnr(run.model, result),
            top1=percent(top == run.split.test_labels),
            agreement=percent(top == run.top),
            protocol=PROTOCOL | _remark(spec) | dict(stated),
            seconds=seconds,
        )
    )


def write_checkpoint(run: DemoRun) -> None:
    """Writes the quantized network."""
    run.step("writing the checkpoint")
    with run.manifest.stage("write the checkpoint", format="W{1}A{2} {0}".format(*KEPT)) as facts:
        written = save_checkpoint(run.out, run.kept.model, run.kept.tensors, KEPT[2])
        facts["bytes"] = {path.name: path.stat().st_size for path in written}
    run.files += written


def write_onnx(run: DemoRun) -> None:
    """Exports the converted network to ONNX, packed, and verifies it under the runtimes."""
    run.step("exporting to ONNX")
    with run.manifest.stage("export to ONNX", format="W{1}A{2} {0}".format(*KEPT)) as facts:
        run.shipped = ship(run.converted, run.split.test_images, run.out, run.batches)
        facts["bytes"] = run.shipped.bytes
        facts["bytes as int8"] = run.shipped.int8_bytes
        facts["verified under"] = list(run.shipped.runtimes)
    run.files.append(run.shipped.path)


def write_for_devices(run: DemoRun) -> None:
    """Exports the network to the kinds of files that were asked for."""
    for kind in run.exports:
        run.step(f"exporting to .{kind}")
        with run.manifest.stage(f"export to .{kind}", format="W{1}A{2} {0}".format(*KEPT)) as facts:
            images, labels = run.split.test_images, run.split.test_labels
            written, figures, text = write_device_file(
                kind, run.model, run.batches, images, labels, run.out
            )
            facts.update(figures)
        run.files += written
        run.measured.append({"file": written[0].name} | figures)
        run.notes.append(text)


def write_report(run: DemoRun) -> None:
    """Draws the figures and writes the page, and the manifest last of all."""
    run.step("drawing the page")
    with run.manifest.stage("draw the figures") as facts:
        figures = demo_figures(run.model, run.kept.tensors, run.manifest.results) + run.figures
        facts["figures"] = len(figures)
    spec = next(iter(run.kept.tensors.values())).spec
    lead = LEAD.format(
        images=len(run.split.test_labels),
        method=KEPT[0],
        weights=spec.mac_bits,
        stored=spec.stored_bits,
        activations=KEPT[2],
    )
    title = "Digits, quantized"
    tables = {"Files": file_columns(run.shipped, run.measured)}
    page = write_page(run.out / PAGE, run.manifest, figures, title, lead=lead, tables=tables)
    run.files.append(page)
    run.files.append(run.manifest.save(run.out / MANIFEST))


STAGES: tuple[Callable[[DemoRun], None], ...] = (
    load,
    quantize_all,
    convert_all,
    recover_without_data,
    write_checkpoint,
    write_onnx,
    write_for_devices,
    write_report,
)
"""What a run does, in order."""

STEPS = len(compared()) + len(CONVERTED_WIDTHS) + 5
"""How many steps the stages announce."""


def run_demo(
    out: Path,
    seed: int = 0,
    host: str = "fx",
    step: Callable[[str], None] = nothing,
    exports: tuple[str, ...] = (),
) -> DemoRun:
    """Runs all stages; see `DemoRun` for arguments and result.

    Raises:
        ImportError: scikit-learn, which holds the images, is missing; or what writes a file that
            is asked for.
        OSError: the folder cannot be made or written to.
    """
    for kind in exports:
        tool_of(kind)
    out.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.start(
        "digits, depthwise separable network", seeds={"calibration images": seed}
    )
    manifest.protocol = {
        "evaluation": EVALUATION,
        **PROTOCOL,
    }
    run = DemoRun(out, seed, host, step, manifest, exports=exports)
    for stage in STAGES:
        stage(run)
    return run


def _remark(spec: QuantSpec) -> dict[str, str]:
    if spec.kind == "pwlq" and spec.grid == "float":
        return {"levels": FLOAT_LEVELS}
    return {}
