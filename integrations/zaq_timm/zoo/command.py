"""`zaq-quantize run` and `zaq-quantize report` on the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from zaq_timm.zoo.errors import DONE, RunError
from zaq_timm.zoo.settings import Settings

RUN = """\
Quantizes models of timm's zoo, or your own, without any data and unattended: each in a process of
its own, one line of results each, a report at the end.

A model is a timm name ('resnet18'), a wildcard ('mobilenetv2*'), package.module:function or
file.py:function (called without arguments, it returns a torch module), or a checkpoint with the
model that it belongs to.
Nothing is ever unpickled: checkpoints are safetensors, or torch files that hold tensors alone.

The folder --out receives
  results.jsonl   one line a model, whole or not there, whatever interrupts the run
  models/NAME/    the model's details, its pictures, its log, and what was exported
  report.html     one self-contained page: table, chart, a page a model
  report.csv      the table
Run the same command again to go on where a run stopped. Other settings need another folder."""

RUN_EXAMPLES = """\
examples
  zaq-quantize run resnet18 'mobilenetv2*' --pretrained --jobs 2
  zaq-quantize run --model mobilenetv2_100 --num-classes 37 --checkpoint my.safetensors
  zaq-quantize run mynet.py:tiny --input-size 1x28x28 --mean 0 --std 1
  zaq-quantize run my.models:tiny --input-size 3x64x64 --budget 4.5bits --eval images/
  zaq-quantize run resnet18 --pretrained --strategy dfq+bias-correction --weights uniform4
  zaq-quantize run resnet18 --pretrained --strategy pwlq+gptq --weights pwlq3 --export onnx
  zaq-quantize run --settings zoo.toml --dry-run"""

REPORT = """\
Writes the report of a folder that zaq-quantize run made: report.html, one self-contained page, and
report.csv. It reads what is there, also while a run goes on."""

GROUPS = {
    "models": ("checkpoint", "model", "num_classes", "pretrained", "exclude"),
    "quantization": (
        "weights",
        "activations",
        "depthwise",
        "host",
        "strategy",
        "zero_shot",
        "sensitivity",
        "budget",
        "export",
    ),
    "images": (
        "eval",
        "eval_images",
        "calibration",
        "calibration_images",
        "test_images",
        "distill_steps",
        "input_size",
        "mean",
        "std",
        "batch",
        "seed",
    ),
    "the run": (
        "out",
        "jobs",
        "threads",
        "memory",
        "timeout",
        "ranks",
        "cluster",
        "retry",
        "restart",
        "dry_run",
        "quiet",
        "json",
    ),
}


def add_commands(
    commands: Any, formatter: type[argparse.HelpFormatter], folder: Callable[[str], Path]
) -> None:
    """Adds both commands to the parser's.

    Args:
        commands: what ``add_subparsers`` returned.
        formatter: of the help.
        folder: reads a folder's path.
    """
    run = commands.add_parser(
        "run",
        help="quantize a whole zoo of models, data-free and unattended",
        description=RUN,
        epilog=RUN_EXAMPLES,
        formatter_class=formatter,
    )
    run.add_argument("models", nargs="*", metavar="MODEL", default=argparse.SUPPRESS)
    run.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="TOML or YAML with any of these options as names; flags win over it",
    )
    by_name = {f.name: f for f in fields(Settings)}
    for title, names in GROUPS.items():
        group = run.add_argument_group(title)
        for name in names:
            _add_flag(group, by_name[name])
    run.set_defaults(run=run_command)
    report = commands.add_parser(
        "report",
        help="write the page and the table of a folder of results",
        description=REPORT,
        formatter_class=formatter,
    )
    report.add_argument("folder", type=folder, metavar="FOLDER", help="the run's --out")
    report.set_defaults(run=report_command)


def _add_flag(group: Any, item: Field[Any]) -> None:
    flag = "--" + item.name.replace("_", "-")
    text = str(item.metadata["help"]).replace("%", "%%")
    suffix = "" if item.default in ("", (), False, 0) else f" (default: {item.default})"
    common: dict[str, Any] = {
        "dest": item.name,
        "default": argparse.SUPPRESS,
        "help": text + suffix,
    }
    if isinstance(item.default, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    elif isinstance(item.default, tuple):
        group.add_argument(flag, action="append", metavar=item.metadata["metavar"], **common)
    elif item.metadata.get("choices"):
        group.add_argument(flag, choices=item.metadata["choices"], **common)
    else:
        kind = _whole if isinstance(item.default, int) else str
        group.add_argument(flag, type=kind, metavar=item.metadata["metavar"], **common)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def read_arguments(args: argparse.Namespace) -> Settings:
    """Settings from the file, if one is named, and the flags, which win.

    Raises:
        ValueError, TypeError: a value that makes no sense; the text names the setting or the file.
        OSError: the file cannot be read.
        ImportError: YAML, and PyYAML is missing.
    """
    from zaq_timm.zoo.settings_file import read_settings

    values: dict[str, Any] = read_settings(args.settings) if args.settings else {}
    names = {f.name for f in fields(Settings)}
    flags = {name: value for name, value in vars(args).items() if name in names}
    if not flags.get("models", True):
        del flags["models"]
    return Settings.from_dict({**values, **flags})


def run_command(args: argparse.Namespace) -> int:
    """Runs the zoo; returns the exit code: 0 if every model is done, 3 if some are not."""
    from zaq_timm.zoo.results import Results, refuse_changes
    from zaq_timm.zoo.runner import Plan, run_settings

    try:
        settings = read_arguments(args)
        plan = Plan.make(settings)
        out = Path(settings.out)
        if settings.dry_run:
            rows, todo = {}, plan.keys
            if (out / "settings.json").is_file() and not settings.restart:
                results = Results.read(out)
                refuse_changes(out, results.settings, plan.shared)
                rows, todo = results.rows, results.unfinished(plan.keys, settings.retry)
            print("\n".join(plan.lines(rows, todo)))
            return 0
        results = run_settings(settings, plan, _print_row if settings.json else lambda _: None)
        return _finish(results, plan.keys, settings)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _fail("run", str(error))
    except RunError as error:
        return _fail("run", str(error))
    except KeyboardInterrupt:
        print(
            "zaq-quantize run: stopped; results are kept, and the same command goes on",
            file=sys.stderr,
        )
        return 130


def _finish(results: Any, keys: list[str], settings: Settings) -> int:
    from zaq_timm.zoo.exporting import lines
    from zaq_timm.zoo.report import terminal_table, write_report

    rows = [results.rows[key] for key in keys]
    written = write_report(results)
    if not settings.json:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(terminal_table(rows))
        for line in lines(rows):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        for row in rows:
            if row["status"] != DONE:
                console.print(
                    f"{row['key']}: {row['status']}: {row['reason']}",
                    highlight=False,
                    soft_wrap=True,
                    markup=False,
                )
        for note in notes_of(rows):
            console.print(f"Note: {note}", highlight=False, soft_wrap=True, markup=False)
        for path in written:
            console.print(f"  {path}", highlight=False, soft_wrap=True)
    return 0 if all(row["status"] == DONE for row in rows) else 3


def notes_of(rows: list[dict[str, Any]]) -> list[str]:
    """What the table's reader must know: of the models, and of this machine."""
    by_text: dict[str, list[str]] = {}
    for row in rows:
        for text in row.get("warnings", ()):
            by_text.setdefault(text, []).append(row["key"])
    notes = [f"{_named(keys)}: {text}" for text, keys in by_text.items()]
    if any(row.get("host") == "fx" for row in rows):  # the others compute exactly
        from zaq_timm.doctor.machine import warning

        note = warning("torch")
        notes += [] if note is None else [f"rows of host fx: {note}"]
    return notes


def _named(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _print_row(row: dict[str, Any]) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)


def report_command(args: argparse.Namespace) -> int:
    """Writes the report of a folder."""
    from zaq_timm.zoo.report import write_report
    from zaq_timm.zoo.results import Results

    try:
        written = write_report(Results.read(args.folder))
    except RunError as error:
        return _fail("report", str(error))
    except OSError as error:
        return _fail("report", f"cannot write to {args.folder}: {error.strerror or error}")
    for path in written:
        print(path)
    return 0


def _fail(command: str, text: str) -> int:
    print(f"zaq-quantize {command}: error: {text}", file=sys.stderr)
    return 2
