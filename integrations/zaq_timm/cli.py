"""The `zaq-quantize` command."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from zaq_timm.zoo.light import did_you_mean

DESCRIPTION = """\
Quantizes PyTorch models to piecewise linear weights (PWLQ) and reports what it cost."""

DEMO = """\
Quantizes a small depthwise separable network that ships with the package, on 1,797 real
scans of handwritten digits (part of scikit-learn: nothing is downloaded), and prints what
each format costs in accuracy and what it saves in size. Takes under a minute.

Formats: uniform with the range of the weights, uniform with the clip of least squared
error, and PWLQ, whose levels are dense around zero and sparse in the tails.
Widths: W8A8 down to W3A8 and W4A4 (bits of weights, bits of activations); one grid an
output channel, or one a tensor, as simple kernels have it.

How to read the table
  MAC bits     the width that the multiplier sees
  stored bits  the width of one weight on disk: for PWLQ one bit more, the region bit
  size         all weights, with clips and breakpoints, and float biases
  SQNR         signal to quantization noise of the weights, in dB; 6 dB are one bit
  top-1        accuracy on 599 held-out images, which calibrate and choose nothing
  agreement    how often the quantized network and the float one name the same class

The folder --out receives
  report.html            the table with plots, one self-contained page
  manifest.json          everything the run did, for programs
  digits.onnx            the W4A8 PWLQ network, converted; ONNX Runtime and OpenVINO run it
  quantized.safetensors  codes, clips and breakpoints of the W4A8 PWLQ network
  rest.safetensors       its biases, and the steps of its activations
  model.pte, .tflite     with --export; and each as an archive for downloads (.zaq)
A file is larger than the table's size, which counts weights alone: it also holds the network's
graph or its tensors' names, which for so small a network are more than the weights."""

DEMO_EXAMPLES = """\
examples
  zaq-quantize demo                       print the table, write zaq-demo/
  zaq-quantize demo --out /tmp/digits     write somewhere else
  zaq-quantize demo --seed 1              calibrate on other training images
  zaq-quantize demo --json | jq '.results[] | {method, top1}'"""

DOCTOR = """\
Looks at processor, memory, compilers, torch and every host, and says what is missing and what
installs it. Whether int8 kernels saturate here is measured, not read from the processor's name.
The exit code is 1 if something that is installed cannot be used."""

NEAREST = ". Did you mean {}?"
Format = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if wrong:
            message += did_you_mean(wrong[1], re.findall(r"[\w.+-]+", wrong[2]), NEAREST)
        self.exit(2, f"{self.prog}: error: {message} (try: {self.prog} --help)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; an unknown option is an error of the command that it was given to."""
        read, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self.commands[read.command]
            options = [name for action in parser._actions for name in action.option_strings]
            hints = [
                did_you_mean(word.split("=")[0], options, NEAREST)
                for word in unknown
                if word[:1] == "-"
            ]
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(hints)}")
        return read

    @property
    def commands(self) -> dict[str, Parser]:
        """The parsers of the commands, by name."""
        return {
            name: parser
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name, parser in action.choices.items()
        }


def seed(text: str) -> int:
    """Reads a seed: a whole number from 0 on."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    value = int(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a number below 2**63, got {text}")
    return value


def folder(text: str) -> Path:
    """Reads a folder's path; it need not exist yet."""
    path = Path(text)
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got an empty name")
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise argparse.ArgumentTypeError(f"{part} is a file; name a folder")
            break
    return path


def device_kinds(text: str) -> tuple[str, ...]:
    """Reads kinds of files for devices, joined by commas."""
    kinds = tuple(dict.fromkeys(text.split(",")))
    for kind in kinds:
        if kind not in ("pte", "tflite"):
            raise argparse.ArgumentTypeError(f"expected pte, tflite, or pte,tflite; got {text!r}")
    return kinds


def build_parser() -> Parser:
    """Returns the parser with every command that there is."""
    from importlib.metadata import version  # zaq_plugin.__version__, without loading torch

    from zaq_timm.archiving import add_archiving
    from zaq_timm.looking.command import add_commands as add_looking
    from zaq_timm.verifying import add_verify
    from zaq_timm.zoo.command import add_commands

    parser = Parser(prog="zaq-quantize", description=DESCRIPTION, formatter_class=Format)
    text = f"zaq-quantize {version('zaq_plugin')}"
    parser.add_argument("--version", action="version", version=text)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="quantize a small network on real images and report (start here)",
        description=DEMO,
        epilog=DEMO_EXAMPLES,
        formatter_class=Format,
    )
    demo.add_argument(
        "--out",
        type=folder,
        default=Path("zaq-demo"),
        metavar="FOLDER",
        help="where to write; made if it does not exist (default: zaq-demo)",
    )
    demo.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="draws the calibration images; one seed, one result (default: 0)",
    )
    demo.add_argument(
        "--host",
        choices=("fx", "pt2e"),
        default="fx",
        help="who converts the network to int8: torch.ao FX, whose int8 kernels run it, or torchao "
        "PT2E (default: fx)",
    )
    demo.add_argument(
        "--export",
        type=device_kinds,
        default=(),
        metavar="KINDS",
        help="also write files for devices, and run them: pte (ExecuTorch), tflite (LiteRT), or "
        "both, joined by a comma",
    )
    demo.add_argument(
        "--json",
        action="store_true",
        help="print the results as JSON instead of a table",
    )
    demo.set_defaults(run=demo_command)
    add_commands(commands, Format, folder)
    add_looking(commands, Format)
    doctor = commands.add_parser(
        "doctor",
        help="what this machine can do, what is missing, and what installs it",
        description=DOCTOR,
        formatter_class=Format,
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=doctor_command)
    add_verify(commands, Format)
    add_archiving(commands, Format)
    return parser


def demo_command(args: argparse.Namespace) -> int:
    """Runs the demo and prints its table, or its results as JSON."""
    import torch
    from rich.console import Console

    from zaq_plugin.report import results_table
    from zaq_timm.demo import STEPS, run_demo
    from zaq_timm.zoo.progress import progress

    # So small a network gains nothing from threads, and on a busy machine they wait for each other.
    torch.set_num_threads(1)
    try:
        steps = STEPS + len(args.export)
        with progress(steps, "{steps} steps in {seconds} s") as step:
            run = run_demo(args.out, args.seed, args.host, step, args.export)
    except OSError as error:
        build_parser().error(f"cannot write to {args.out}: {error.strerror or error}")
    except ImportError as error:
        print(f"zaq-quantize demo: error: {error}", file=sys.stderr)
        return 1
    files = [str(path) for path in run.files]
    if args.json:
        results = [row.to_dict() for row in run.manifest.results]
        facts = {"seed": args.seed, "files": files, "notes": run.notes, "results": results}
        print(json.dumps(facts, indent=2))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(results_table(run.manifest.results, "Handwritten digits, 599 held-out images"))
    for note in run.notes:
        console.print(f"Note: {note}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"\n{run.shipped}", highlight=False, soft_wrap=True)
    console.print("\nWritten", highlight=False)
    width = max(map(len, files))
    for path in run.files:
        size = f"{path.stat().st_size / 1000:8,.1f} kB"
        console.print(f"  {path!s:<{width}} {size}", highlight=False, soft_wrap=True, markup=False)
    console.print(
        "\nA file is larger than the table's size, which counts weights alone: it also holds the "
        "graph, or tensors' names.",
        highlight=False,
    )
    return 0


def doctor_command(args: argparse.Namespace) -> int:
    """Prints what the doctor finds; without torch there is no more to find than that."""
    try:
        from zaq_timm.doctor.findings import examine, lines
    except ImportError as error:
        print(
            f"zaq-quantize doctor: error: zaq_plugin cannot be imported ({error}); install what it "
            "needs with: pip install --force-reinstall zaq_plugin",
            file=sys.stderr,
        )
        return 1
    findings = examine()
    print(json.dumps(findings, indent=2) if args.json else "\n".join(lines(findings)))
    return 1 if findings["problems"] else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except BrokenPipeError:
        # Whoever read our output has had enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("zaq-quantize: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
