"""Published methods in every host, data-free: what converted models do, beside the simulated ones.

    python -m benchmarks.hosts.methods --data DIR [--model cifar10 imagenet]
        [--method pwlq pwlq+gptq brecq zaq] [--host simulated fx pt2e nncf onnx] [--effort 0.25]

Every host gets the same synthetic images, and the same formats: PWLQ weights per output channel,
uniform activations per tensor, input 8 bits, depthwise layers int8 (``depthwise="int8"``). What is
measured is what the host makes: modules of ``convert_fx``, Inductor's int8 kernels (PT2E), OpenVINO
(NNCF), ONNX Runtime on the exported simulated student (onnx). Each row becomes a JSON line the
moment it is there; a second run goes on where the first one ended. The table is written beside.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data.images import request_for, shared_images
from benchmarks.data.subjects import BATCH, TITLES, Subject, load_subject, traceable
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from benchmarks.tables import table
from zaq_plugin.strategies import apply
from zaq_plugin.student.host import find_host

NEEDS = """Needs --data DIR and the hosts. Takes ten seconds to a minute a cell: half an hour for
all."""

METHODS = ("pwlq", "pwlq+gptq", "brecq", "zaq")
HOSTS = ("simulated", "fx", "pt2e", "nncf", "onnx")
BITS = ("4/8", "4/4", "3/3")
EFFORT = {"pwlq": 1.0, "pwlq+gptq": 1.0, "brecq": 1 / 16, "zaq": 1 / 16}
"""Share of a method's steps: learned rounding and training at full length take minutes a row."""
STUDENTS = (("simulated", "onnx"), ("fx",), ("pt2e",), ("nncf",))
"""Rows of one student: the ONNX file is the simulated one's."""
AIM = {8: 0.5, 4: 1.0, 3: 1.0}
"""Points of agreement below the simulated model, by bits of activations."""
KEY = ("model", "method", "host", "bits", "seed", "effort")


def running(host: str, student: nn.Module, subject: Subject) -> tuple[nn.Module, int]:
    """What a host runs, and the batch that it runs on."""
    batch = BATCH[subject.name]
    if host in ("simulated", "onnx"):
        return (student, batch) if host == "simulated" else (OnOnnxRuntime(student, subject), batch)
    converted: Any = find_host(host).convert(student)
    shape = torch.zeros(batch, *subject.images.shape[1:])
    if host == "pt2e":
        import zaq_pt2e

        return zaq_pt2e.lower(converted, (shape,)), batch
    if host == "nncf":
        from benchmarks.hosts.accuracy_nncf import OnOpenVINO

        return OnOpenVINO(converted, shape), batch
    return converted, batch


class OnOnnxRuntime(nn.Module):
    """A simulated student's file on ONNX Runtime."""

    def __init__(self, student: nn.Module, subject: Subject) -> None:
        super().__init__()
        import onnxruntime

        import zaq_onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            zaq_onnx.export(student, (subject.images[:2],), path, reduce_range=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self.session: Any = onnxruntime.InferenceSession(path.read_bytes(), options)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, classes)."""
        name = self.session.get_inputs()[0].name
        return torch.from_numpy(self.session.run(None, {name: x.numpy()})[0])


def measure(
    jobs: Sequence[dict[str, Any]], subject: Subject, cache: Path
) -> Iterator[dict[str, Any]]:
    """The rows of one student, each the moment that it is there."""
    # All methods and hosts learn from the very same images.
    first = jobs[0]
    images, _ = shared_images({**first, "effort": 1.0}, subject, cache, "pwlq")
    host = "simulated" if first["host"] == "onnx" else first["host"]
    request = replace(request_for(first, subject, images), host=host, depthwise="int8", int8=True)
    model = traceable(subject) if host == "fx" else subject.model
    started = time.process_time()
    applied = apply(first["method"], model, request)
    spent = time.process_time() - started
    expected = subject.outputs(subject.model)
    for job in jobs:
        run, batch = running(job["host"], applied.model, subject)
        with torch.no_grad():
            answers = torch.cat([run(x) for x in subject.images.split(batch)])
        yield {
            **job,
            "score": subject.score(answers),
            "float": subject.score(expected),
            "agreement": subject.agreement(expected, answers),
            "seconds": round(spent, 1),
            "images": 0 if images is None else len(images),
            "quantized": sum(layer.quantized for layer in applied.layers),
            "layers": len(applied.layers),
            "notes": applied.notes,
            "processor": torch.backends.cpu.get_cpu_capability(),
        }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "# Published methods in every host",
        "",
        "`python -m benchmarks.hosts.methods --data DIR`. Data-free: all hosts and methods",
        "learn from the same distilled images. W/A are stored bits of weights (PWLQ multiplies in",
        "one less) / bits of activations; 8-bit input; int8 for depthwise layers. Cells: top-1 /",
        "agreement with the float network's decisions, in percent, and processor seconds of the",
        "method (images aside). One seed (0). Effort: the share of a method's training steps.",
        "`simulated` computes in float with grid values; `fx`: modules of convert_fx; `pt2e`:",
        "Inductor's int8 kernels; `nncf`: OpenVINO; `onnx`: ONNX Runtime on the simulated",
        "student's file. `!`: agreement below the simulated student's by more than the aim, 0.5",
        "points at 8 bits of activations and 1.0 below.",
        "",
        *REMARKS,
    ]
    by_key = {tuple(row[k] for k in KEY): row for row in rows}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in by_key.values() if row["model"] == model]
        lines += ["", f"## {TITLES[model]} ({own[0]['float']:.2f} % in float)", ""]
        shown = []
        for method, effort, bits in _lines(own):
            by_host = {
                row["host"]: row
                for row in own
                if (row["method"], row["effort"], row["bits"]) == (method, effort, bits)
            }
            cells = [_cell(by_host.get(host), by_host.get("simulated")) for host in HOSTS]
            shown.append([f"`{method}`", f"{effort:g}", bits, *cells])
        lines += table(["method", "effort", "W/A", *HOSTS], shown, "lrlr")
    errors = [row for row in by_key.values() if row.get("error")]
    if errors:
        lines += ["", "What could not be measured:", ""]
        lines += [f"- {r['model']}, {r['method']}, {r['host']}, {r['bits']}: {r['error']}"
                  for r in errors]  # fmt: skip
    return "\n".join(lines) + "\n"


REMARKS = (
    "PT2E, FX and NNCF round every tensor between layers to 8 bits at least; the simulated",
    "student rounds the layers' inputs alone. A tensor that is added and multiplied has two",
    "grids, the narrow one for the layers. Rows of `zaq`, and of `brecq` on MobileNetV1, are",
    "older than clips of least cubed error at 4 bits and fewer, which the others have.",
    "",
    "What misses the aim, and why:",
    "",
    "- MobileNetV1 is measured on 400 images: a point of agreement is four of them. `onnx` runs",
    "  the simulated student itself, and its roundings between layers alone move agreement by up",
    "  to 1.75 points; no miss below that says anything. At 4/4 and 3/3 the network is lost in",
    "  every host.",
    "- FX puts logits on 8 bits, too, over twice the range that made images reach. `pwlq` at 4/8",
    "  on MobileNetV1 agrees in 69.00 % where they stay float.",
    "- `brecq` has a twentieth of its steps, so that at 3/3 every student ends elsewhere.",
    "- `zaq` hands back what a judge likes best on a few dozen made images: the start, the",
    "  student reconstructed, or rounded with error feedback. With so few steps these lie close",
    "  together, and a host may end with another one: on CIFAR-10 it is the start in FX at 4/4",
    "  and in NNCF at 3/3. Another seed on the same images: simulated 93.72, FX 93.00 at 4/4;",
    "  simulated 83.40, NNCF 83.44 at 3/3.",
)


def _lines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, str]]:
    """Method, effort and bits of every line, in order."""
    keys = {(row["method"], row["effort"], row["bits"]) for row in rows}
    methods = [*METHODS, *sorted({method for method, _, _ in keys} - set(METHODS))]
    return sorted(keys, key=lambda k: (methods.index(k[0]), -k[1], BITS.index(k[2])))


def _cell(row: dict[str, Any] | None, simulated: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row.get("error"):
        return "(see below)"
    behind = 0.0
    if simulated is not None and not simulated.get("error"):
        behind = simulated["agreement"] - row["agreement"]
    mark = " !" if behind > AIM[int(row["bits"][-1])] + 1e-9 else ""
    return f"{row['score']:.2f} / {row['agreement']:.2f}{mark}, {row['seconds']:.0f} s"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the table."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", type=Path, required=True, help="folder of models and images")
    parser.add_argument("--model", choices=("cifar10", "imagenet"), nargs="+", default=["cifar10"])
    parser.add_argument("--method", nargs="+", default=list(METHODS))
    parser.add_argument("--host", choices=HOSTS, nargs="+", default=list(HOSTS))
    parser.add_argument("--bits", choices=BITS, nargs="+", default=list(BITS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", type=float, help="share of training steps, for all methods")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "zaq-images")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods_in_hosts.jsonl")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    args.cache.mkdir(parents=True, exist_ok=True)
    done = {tuple(row[k] for k in KEY) for row in read_rows(args.out)}
    for model in args.model:
        subject = load_subject(model, args.data)
        for method, bits, hosts in itertools.product(args.method, args.bits, STUDENTS):
            effort = args.effort or EFFORT.get(method, 1.0)
            jobs = [
                {"model": model, "method": method, "host": host, "bits": bits, "seed": args.seed,
                 "effort": effort, "levels": "pwlq", "images": "synthetic"}
                for host in hosts
                if host in args.host
            ]  # fmt: skip
            missing = [job for job in jobs if tuple(job[k] for k in KEY) not in done]
            if missing:
                _write(missing, subject, args)
    args.out.with_suffix(".md").write_text(markdown(read_rows(args.out)))
    return 0


def _write(jobs: list[dict[str, Any]], subject: Subject, args: argparse.Namespace) -> None:
    """Measure the rows of one student; what fails is told in the rows that are missing then."""
    left = list(jobs)
    rows = measure(jobs, subject, args.cache)
    while left:
        try:
            row = next(rows)
        except (ValueError, RuntimeError) as error:
            row = {**left[0], "float": subject.published, "error": str(error)[:300]}
            rows = measure(left[1:], subject, args.cache)
        left.pop(0)
        append_row(args.out, row)
        print(*(f"{row[k]}" for k in KEY), _cell(row, None), file=sys.stderr, flush=True)
        args.out.with_suffix(".md").write_text(markdown(read_rows(args.out)))


if __name__ == "__main__":
    raise SystemExit(main())
