"""Coverage of timm: one model of every family, quantized, converted, run and audited.

    python -m benchmarks.coverage [--ways zaq torchao nncf] [--jobs 1] [--work DIR]

A family is a module that timm registers; its smallest model that is no test model stands for it,
with random weights (BatchNorm statistics perturbed) and the smallest images that it takes; heads
for detection and segmentation of torchvision stand beside them. Each is done in a process of its
own, by the same machinery as ``zaq-quantize run``, with a time and a memory limit. A second run
goes on where the first one ended. Ways:

* ``zaq``: `zaq_pt2e.PWLQQuantizer`, PWLQ weights of 4 MAC bits and 5 stored bits, 8-bit activations
* ``torchao``: stock PT2E, `X86InductorQuantizer` with its default configuration, 8-bit weights
* ``nncf``: stock `nncf.quantize` with its defaults, 8-bit weights
* ``executorch``, ``litert``: `zaq_executorch.export`, `zaq_litert.export`, the weights of ``zaq``

Done means: converted, run on new images, output finite, and at least one layer quantized; for a
device that its file runs in the device's runtime and passes verification. Layers are counted as
torch.export sees them.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.networks import HEADS, make, parameters, smallest_models
from benchmarks.rows import RESULTS, command_line, read_rows
from benchmarks.tables import table
from zaq_plugin.errors import in_short
from zaq_plugin.files import write_whole
from zaq_plugin.pwlq import PWLQSpec
from zaq_timm.zoo.errors import DONE, LeftOut
from zaq_timm.zoo.light import write_json
from zaq_timm.zoo.measure import distance, outputs, padded
from zaq_timm.zoo.pool import Task
from zaq_timm.zoo.runner import run
from zaq_timm.zoo.worker import Limits

NEEDS = """Needs timm, torchvision and what the ways name; no data. Takes one to two minutes a
model: three hours for all families by zaq; --family and --largest ask for fewer."""

BATCH = 4
SECONDS, MEMORY = 1800.0, 12 * 10**9
FAMILIES = "families.json"
FIRST = "2.15.0+cu132"
"""Torch of the rows that do not say."""


Made = tuple[Callable[[Tensor], object], int, int, list[str]]
"""The quantized model, its layers, how many are quantized, and remarks."""


def by_zaq(model: nn.Module, images: Tensor) -> Made:
    """This project's way."""
    from zaq_timm.zoo.hosts import Request, on_host

    converted = on_host("pt2e", Request(model, PWLQSpec(bits=4), 8, {}, images[:BATCH], BATCH))
    call: Any = (
        converted.model
        if converted.fixed_batch is None
        else padded(converted.model, converted.fixed_batch)
    )
    skipped = [f"{r.name}: {r.reason}" for r in converted.layers.skipped]
    return call, len(converted.layers), len(converted.layers.quantized), converted.notes + skipped


def by_torchao(model: nn.Module, images: Tensor) -> Made:
    """Stock PT2E; exported as the quantizer wants it, strictly, else as torch.export does."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    import zaq_pt2e
    from zaq_pt2e.graph import layers

    reasons: list[str] = []
    for strict in (True, False):
        try:
            program = torch.export.export(model, (images[:BATCH],), strict=strict)
            quantizer = X86InductorQuantizer()
            quantizer.set_global(get_default_x86_inductor_quantization_config())
            prepared = prepare_pt2e(program.module(), quantizer)
            with torch.no_grad():
                prepared(images[:BATCH])
            converted = convert_pt2e(prepared)
            total = len({layer.name for layer in layers(converted)})
            done = len(zaq_pt2e.audit(converted).quantized)
            return padded(converted, BATCH), total, done, reasons
        except Exception as error:
            reasons.append(f"strict={strict}: {in_short(error)}")
    raise LeftOut("; ".join(reasons))


def by_nncf(model: nn.Module, images: Tensor) -> Made:
    """Stock NNCF."""
    import nncf
    from nncf.torch.function_hook.wrapper import get_hook_storage

    total = _exported_layers(model, images)
    try:
        quantized = nncf.quantize(model, nncf.Dataset([images[:BATCH]]), subset_size=1)
    except Exception as error:
        raise LeftOut(in_short(error)) from error
    # A hook before an operator's second input is a weight's quantizer.
    weights = [n for n, _ in get_hook_storage(quantized).named_hooks() if "__1." in n]
    if not weights:
        raise LeftOut("no weight was quantized")
    return quantized, total, min(len(weights), total or len(weights)), []


def _exported_layers(model: nn.Module, images: Tensor) -> int:
    from zaq_pt2e.graph import layers

    graph: Any = torch.export.export(model, (images[:BATCH],)).module()
    return len({layer.name for layer in layers(graph)})


def by_device(name: str, model: nn.Module, images: Tensor) -> Made:
    """A file for a device, one image at a time."""
    tool, running = import_module(f"zaq_{name}"), import_module(f"zaq_{name}.reading")
    with tempfile.TemporaryDirectory() as folder:
        path, batches = Path(folder) / "model", list(images[:BATCH].split(1))
        exported = tool.export(model, (images[:1],), path, calibration=batches, method="pwlq")
        checked = tool.verify(path, exported.model, images[BATCH : BATCH + 2])
        if not checked.ok:
            raise LeftOut("; ".join(checked.problems))
        run = running.runner(path)
    notes = [f"{record.name}: {record.reason}" for record in exported.layers.skipped]
    notes += [f"outside: {operator} {n} times" for operator, n in sorted(checked.outside.items())]

    def call(x: Tensor) -> tuple[Tensor, ...]:
        answers = [run((image.contiguous(),)) for image in x.split(1)]
        return tuple(map(torch.cat, zip(*answers, strict=True)))

    return call, len(exported.layers), len(exported.layers.quantized), notes


WAYS: dict[str, Callable[[nn.Module, Tensor], Made]] = {
    "zaq": by_zaq,
    "torchao": by_torchao,
    "nncf": by_nncf,
    "executorch": partial(by_device, "executorch"),
    "litert": partial(by_device, "litert"),
}
TITLES = {
    "executorch": "zaq_executorch, PWLQ W4A8",
    "litert": "zaq_litert, PWLQ W4A8",
    "zaq": "zaq_pt2e, PWLQ W4A8",
    "torchao": "torchao PT2E, stock W8A8",
    "nncf": "NNCF, stock W8A8",
}


def cover(payload: Mapping[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    """One model by one way: the work of a worker; returns its row."""
    warnings.simplefilter("ignore")
    report("making the model", 0, 0)
    model, images = make(payload["model"])
    row = {
        "family": payload["family"],
        "model": payload["model"],
        "way": payload["way"],
        "input": "x".join(map(str, images.shape[1:])),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    reference = outputs(model, images[BATCH:], BATCH)
    report("quantizing", 0, 0)
    try:
        call, layers, quantized, notes = WAYS[payload["way"]](model, images)
        tensors = outputs(call, images[BATCH:], BATCH)
    except Exception as error:
        reason = str(error) if isinstance(error, LeftOut) else in_short(error)
        return {**row, "status": "left out", "reason": reason}
    if not all(bool(t.isfinite().all()) for t in tensors):
        return {**row, "status": "failed", "reason": "the quantized model's output is not finite"}
    apart = distance(reference, tensors)
    noise = max(min(apart.sqnr_db, 999.0), -999.0)
    return {**row, "layers": layers, "quantized": quantized, "sqnr_db": noise, "notes": notes}


@dataclass(frozen=True)
class CoveragePlan:
    """Families by ways; see `zaq_timm.zoo.runner.Planned`."""

    families: dict[str, str]
    ways: tuple[str, ...]
    wanted: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """Way by way, families in order."""
        return [f"{family}.{way}" for way in self.ways for family in self.wanted]

    @property
    def shared(self) -> dict[str, Any]:
        """The list of models."""
        return {"families": self.families}

    def task(self, key: str, folder: Path) -> Task:
        """One family by one way."""
        family, way = key.rsplit(".", 1)
        payload = {"family": family, "model": self.families[family], "way": way}
        return Task(key, "benchmarks.coverage.run:cover", payload, folder)


def markdown(rows: Mapping[str, Mapping[str, Any]], families: Mapping[str, str]) -> str:
    """The table: what each way reached, then family by family."""
    import timm

    ways = [w for w in WAYS if any(key.endswith(f".{w}") for key in rows)]
    heads = ["way", "families done", "share", "layers quantized in them", "minutes", "torch"]
    shown = []
    for way in ways:
        mine = [rows[f"{f}.{way}"] for f in families if f"{f}.{way}" in rows]
        done = [row for row in mine if row["status"] == DONE]
        graded, layers = (sum(row[k] for row in done) for k in ("quantized", "layers"))
        minutes = sum(row["measured"]["seconds"] for row in mine) / 60
        versions = ", ".join(sorted({row.get("torch", FIRST) for row in mine}))
        cells = [TITLES[way], f"{len(done)} of {len(mine)}"]
        cells += [f"{100 * len(done) / len(mine):.1f} %", f"{graded:,} of {layers:,}"]
        shown.append([*cells, f"{minutes:.0f}", versions])
    lines = [
        "# Coverage of timm's families\n",
        f"{__doc__.split(chr(10), 4)[4].strip()}\n" if __doc__ else "",
        f"timm {timm.__version__}: {len(families)} families.\n",
        *table(heads, shown, "lrrrrl"),
        "\nA cell: layers quantized of those there are, or why not. "
        "`!` marks layers left out, whose reasons are in the JSON lines.\n",
    ]
    shown = []
    for family, model in families.items():
        cells = [_cell(rows.get(f"{family}.{way}")) for way in ways]
        size = next(
            (r["input"] for w in ways if (r := rows.get(f"{family}.{w}")) and "input" in r), ""
        )
        shown.append([family, model, size, *cells])
    heads = ["family", "model", "images", *(TITLES[w] for w in ways)]
    return "\n".join([*lines, *table(heads, shown, "l")]) + "\n"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    if row["status"] != DONE:
        reason = str(row["reason"]).replace("<", "\\<")
        return f"**{row['status']}**: {reason[:160]}"
    mark = " !" if row["quantized"] < row["layers"] else ""
    return f"{row['quantized']} of {row['layers']}{mark}"


def main(argv: Sequence[str] | None = None) -> int:
    """Does what is missing, then writes table and lines."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--ways", choices=list(WAYS), nargs="+", default=list(WAYS))
    parser.add_argument("--family", nargs="+", help="only these")
    parser.add_argument("--largest", type=float, help="only models of so many million parameters")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--retry", choices=("killed", "failed", "none"), default="killed")
    parser.add_argument("--work", type=Path, default=Path("zaq-coverage"), help="results so far")
    parser.add_argument("--out", type=Path, default=RESULTS / "coverage.md")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    listed = args.work / FAMILIES
    if not listed.is_file():
        write_json(listed, smallest_models())
    families: dict[str, str] = json.loads(listed.read_text(encoding="utf-8"))
    families |= {f"torchvision_{name.split('_')[0]}": name for name in HEADS}
    chosen = tuple(args.family or families)
    if args.largest is not None:
        sizes = {family: parameters(families[family]) for family in chosen}
        small = [family for family in chosen if sizes[family] <= 1e6 * args.largest]
        chosen = tuple(sorted(small, key=sizes.__getitem__))

    limits = Limits(1, MEMORY, SECONDS)
    plan = CoveragePlan(families, tuple(args.ways), chosen)
    lines = args.out.with_suffix(".jsonl")
    before = read_rows(lines)

    def written(rows: Mapping[str, Mapping[str, Any]]) -> None:
        rows = {**{row["key"]: row for row in before}, **rows}
        order = [f"{f}.{w}" for f in families for w in WAYS if f"{f}.{w}" in rows]
        write_whole(lines, "".join(json.dumps(rows[key]) + "\n" for key in order))
        write_whole(args.out, markdown(rows, families))

    results = run(plan, args.work, jobs=args.jobs, limits=limits, retry=args.retry)
    written(results.rows)
    return 0
