"""`zaq-quantize verify` on the command line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from zaq_onnx import Verification
    from zaq_onnx.verdict import RuntimeReport

VERIFY = """\
Runs an ONNX file in every runtime that is installed, each in a process of its own, and says which
load it, whether the answer is right, what they multiply in, and how long it takes.

Right means: as the file's own operators answer one by one, within the rounding that a step of the
activations moves. A step in the table is one 255th of the range of the outputs."""

VERIFY_EXAMPLES = """\
examples
  zaq-quantize verify model.onnx
  zaq-quantize verify model.onnx --inputs images.npz --float-file float.onnx
  zaq-quantize verify model.onnx --runtimes onnxruntime openvino tract
  zaq-quantize verify model.onnx --node-modules web/node_modules --json

exit code: 0 if it is right wherever it was run, 1 if not (leave a runtime out with --runtimes)"""


def existing(text: str) -> Path:
    """Reads the path of a file that exists."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def positive(text: str) -> float:
    """Reads a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def count(text: str) -> int:
    """Reads a whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def add_verify(commands: Any, formatter: Any) -> None:
    """Adds the command to a parser's.

    Args:
        commands: What ``add_subparsers`` returned.
        formatter: How help is laid out.
    """
    verify = commands.add_parser(
        "verify",
        help="run an ONNX file in every runtime that is installed",
        description=VERIFY,
        epilog=VERIFY_EXAMPLES,
        formatter_class=formatter,
    )
    verify.add_argument("file", type=existing, metavar="FILE", help="an ONNX file, packed or not")
    verify.add_argument("--runtimes", nargs="+", metavar="NAME", help="these alone")
    verify.add_argument(
        "--inputs",
        type=existing,
        metavar="FILE.npz",
        help="what to run on: arrays by the names of the inputs (default: noise, a batch of one)",
    )
    verify.add_argument(
        "--float-file", type=existing, metavar="FILE", help="the same network in float, timed too"
    )
    verify.add_argument(
        "--seconds", type=positive, default=1.0, metavar="S", help="to time a file for (default: 1)"
    )
    verify.add_argument(
        "--timeout", type=positive, default=300.0, metavar="S", help="for a runtime (default: 300)"
    )
    verify.add_argument(
        "--threads", type=count, default=1, metavar="N", help="for a runtime (default: 1)"
    )
    verify.add_argument(
        "--node-modules",
        type=Path,
        metavar="FOLDER",
        help="where npm put onnxruntime-node and onnxruntime-web (default: NODE_PATH)",
    )
    verify.add_argument("--json", action="store_true", help="print JSON instead of a table")
    verify.set_defaults(run=verify_command)


ELSEWHERE = {".pte": "zaq_executorch", ".tflite": "zaq_litert"}
"""Files of other runtimes, and what verifies them, in Python."""


def verify_command(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    module = ELSEWHERE.get(args.file.suffix.lower())
    if module is not None:
        print(
            f"zaq-quantize verify: error: {args.file} is no ONNX file. A {args.file.suffix} file "
            f"is verified against its model, in Python: made = {module}.export(model, (images,), "
            f'"{args.file}"); print({module}.verify("{args.file}", made.model, images))',
            file=sys.stderr,
        )
        return 2
    try:
        import zaq_onnx

        inputs = None if args.inputs is None else _inputs(args.inputs, args.file)
        report = zaq_onnx.verify(
            args.file,
            None,
            inputs,
            runtimes=args.runtimes or list(zaq_onnx.ADAPTERS),
            threads=args.threads,
            isolated=True,
            float_file=args.float_file,
            seconds=args.seconds,
            timeout=args.timeout,
            node_modules=args.node_modules,
        )
    except (ImportError, OSError, ValueError) as error:
        print(f"zaq-quantize verify: error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(as_json(report), indent=2))
    else:
        _print(report)
    return 0 if report.ok else 1


def _inputs(path: Path, file: Path) -> list[Any]:
    """Arrays of an .npz file, in the order of a model's inputs.

    Raises:
        ValueError: it is no such file, or its names are not the inputs'.
    """
    import numpy as np

    from zaq_onnx.files import parse

    graph = parse(file).graph
    constants = {tensor.name for tensor in graph.initializer}
    names = [one.name for one in graph.input if one.name not in constants]
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(f"{path}: not an .npz file of arrays; write it by numpy.savez.") from error
    if set(arrays) != set(names):
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; the inputs of the model are called "
            f"{', '.join(names)}."
        )
    return [arrays[name] for name in names]


def as_json(report: Verification) -> dict[str, Any]:
    """Everything that was found, in plain types."""
    keep = ("name", "version", "state", "message", "error", "steps", "agreement", "integer_layers",
            "float_layers", "arithmetic", "load_seconds", "milliseconds", "float_milliseconds",
            "ratio", "kernels")  # fmt: skip
    return {
        "file": report.path,
        "ok": report.ok,
        "layers": report.layers,
        "packed": report.packed,
        "tolerance": report.tolerance,
        "runtimes": [{name: getattr(one, name) for name in keep} for one in report.runtimes],
        "problems": report.problems,
        "remarks": report.remarks,
    }


def verdict(report: Verification) -> str:
    """One sentence."""
    there = [one for one in report.runtimes if one.state != "not installed"]
    right = [one for one in there if one.state == "right"]
    word = "OK" if report.ok else "NOT OK"
    return (
        f"{word}: {report.layers} int8 layers, {report.packed} of them packed; right in "
        f"{len(right)} of {len(there)} runtimes that are installed."
    )


def table_of(report: Verification) -> Table:
    """One row a runtime."""
    from rich.table import Table

    table = Table(title=report.path)
    for head in ("runtime", "version", "answer"):
        table.add_column(head)
    table.add_column("off by, steps", justify="right")
    table.add_column("layers")
    for head in ("load, ms", "run, ms", "to float"):
        table.add_column(head, justify="right")
    for one in report.runtimes:
        table.add_row(one.name, one.version or "-", one.state, *_figures(one))
    return table


def _figures(one: RuntimeReport) -> tuple[str, ...]:
    if not one.ran:
        return ("-",) * 5
    return (
        f"{one.steps:.3f}",
        one.arithmetic,
        f"{1000 * one.load_seconds:.0f}",
        "-" if one.milliseconds is None else f"{one.milliseconds:.3g}",
        "-" if one.ratio is None else f"{one.ratio:.2f}",
    )


def _print(report: Verification) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    if report.runtimes:
        console.print(table_of(report), markup=False)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    missing = [one for one in report.runtimes if one.state == "not installed"]
    for one in missing:
        say(f"not installed: {one.name}; {one.message}")
    for text in report.problems:
        say(f"problem: {text}")
    for text in report.remarks:
        say(f"remark: {text}")
    say(verdict(report))
