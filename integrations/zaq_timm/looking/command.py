"""`zaq-quantize inspect` and `zaq-quantize compare` on the command line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from zaq_timm.zoo.errors import LeftOut, RunError

INSPECT = """\
Looks at a model before anything is quantized: its layers and shapes, what would stay float and
why, which hosts take it, predicted sizes at 4, 5 and 8 stored bits, and seconds of methods.

MODEL is a timm name, package.module:function, file.py:function, a checkpoint (with --model NAME),
or an ONNX file."""

COMPARE = """\
Compares two things layer by layer, the worst layer first, by SQNR of the weights (6 dB are one
bit). A and B are two folders of results (zaq-quantize run, zaq-quantize demo), or two of: an ONNX
file, a checkpoint, a file of quantized tensors, a model.

A model's BatchNorms are folded first, as quantization does. A checkpoint is compared as it is; with
--model NAME it is loaded into that model, and folded, too."""

COMPARE_EXAMPLES = """\
examples
  zaq-quantize compare zoo-4bit/ zoo-5bit/
  zaq-quantize compare my.models:tiny model.onnx --input-size 1x16x16
  zaq-quantize compare my.safetensors model.onnx --model mobilenetv2_100
  zaq-quantize compare a.onnx b.onnx --out compare.html"""


def add_commands(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Adds both commands to the parser's."""
    inspect = commands.add_parser(
        "inspect",
        help="what would become of a model, before anything runs",
        description=INSPECT,
        formatter_class=formatter,
    )
    inspect.add_argument("name", metavar="MODEL", help="a model, a checkpoint or an ONNX file")
    inspect.add_argument(
        "--model", default="", metavar="NAME", help="whose weights a checkpoint has"
    )
    inspect.add_argument("--hosts", action=argparse.BooleanOptionalAction, default=True,
                         help="ask every host, seconds each (default: yes)")  # fmt: skip
    inspect.add_argument("--seconds", action=argparse.BooleanOptionalAction, default=True,
                         help="predict what methods take (default: yes)")  # fmt: skip
    _add_loading(inspect)
    inspect.set_defaults(run=inspect_command)
    compare = commands.add_parser(
        "compare",
        help="two results, two files, or a model and its file: worst layers first",
        description=COMPARE,
        epilog=COMPARE_EXAMPLES,
        formatter_class=formatter,
    )
    compare.add_argument("first", metavar="A")
    compare.add_argument("second", metavar="B")
    compare.add_argument(
        "--model", default="", metavar="NAME", help="whose weights a checkpoint has"
    )
    compare.add_argument("--top", type=int, default=0, metavar="N", help="print so many; 0 for all")
    compare.add_argument("--out", type=Path, metavar="FILE", help="also write a page (HTML)")
    _add_loading(compare)
    compare.set_defaults(run=compare_command)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pretrained", action="store_true", help="weights from timm's hub")
    parser.add_argument("--num-classes", type=int, default=0, metavar="N", help="0 for its own")
    parser.add_argument(
        "--input-size", default="", metavar="SIZE", help="CxHxW; its own by default"
    )
    parser.add_argument(
        "--mean", default="", metavar="NUMBERS", help="of pixels from 0 to 1; its own by default"
    )
    parser.add_argument("--std", default="", metavar="NUMBERS", help="their deviation, likewise")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _settings(args: argparse.Namespace, **more: Any) -> Any:
    from zaq_timm.zoo.settings import Settings

    return Settings(
        pretrained=args.pretrained,
        num_classes=args.num_classes,
        input_size=args.input_size,
        mean=args.mean,
        std=args.std,
        **more,
    )


def inspect_command(args: argparse.Namespace) -> int:
    """Prints what would become of a model."""
    try:
        path = Path(args.name).expanduser()
        if path.suffix == ".onnx":
            from zaq_timm.looking.predict import sketch_onnx

            outline = sketch_onnx(path)
        else:
            reference, settings = _reference(args, path)
            from zaq_timm.looking.predict import sketch

            outline = sketch(reference, settings, args.hosts, args.seconds)
    except (ValueError, TypeError, OSError, ImportError, LeftOut) as error:
        return _fail("inspect", error)
    if args.json:
        print(json.dumps(outline.to_dict(), indent=2))
        return 0
    from zaq_timm.looking.shown import sketch_lines

    print("\n".join(sketch_lines(outline)))
    return 0


def _reference(args: argparse.Namespace, path: Path) -> tuple[Any, Any]:
    """The model that is meant, judged before torch is loaded."""
    from zaq_timm.zoo.references import find_references

    if args.model:
        settings = _settings(args, checkpoint=str(path), model=args.model)
    elif path.is_file():
        raise ValueError(
            f"{path} is a file of weights; say which model it belongs to with --model NAME."
        )
    else:
        settings = _settings(args, models=(args.name,))
    references = find_references(settings)
    if len(references) > 1:
        names = ", ".join(r.name for r in references[:3])
        raise ValueError(f"inspect looks at one model; {args.name!r} names {names}, ...")
    return references[0], settings


def compare_command(args: argparse.Namespace) -> int:
    """Prints how two things differ, and writes a page of it."""
    try:
        settings = _settings(args)
        _check_model(args)
        for name in (args.first, args.second):
            if name.endswith(("/", ".html")) and not Path(name).expanduser().exists():
                raise FileNotFoundError(f"{name} does not exist.")
        from zaq_timm.looking.contents import contents_of
        from zaq_timm.looking.differences import compare

        first, second = (
            contents_of(name, settings, args.model) for name in (args.first, args.second)
        )
        differences = compare(first, second)
    except (ValueError, TypeError, OSError, ImportError, LeftOut, RunError) as error:
        return _fail("compare", error)
    from zaq_timm.looking.shown import column_lines, difference_columns

    if args.out:
        from zaq_plugin.files import write_whole
        from zaq_plugin.report.page import render_table_page

        columns = difference_columns(differences, args.first, args.second)
        lead = f"{args.first} and {args.second}: worst layers first; 6 dB are one bit."
        try:
            write_whole(args.out, render_table_page(columns, "Layer by layer", lead))
        except OSError as error:
            return _fail("compare", f"cannot write to {args.out}: {error.strerror or error}")
    if args.json:
        print(json.dumps([d.to_dict() for d in differences], indent=2))
        return 0
    shown = differences[: args.top] if args.top > 0 else differences
    print("\n".join(column_lines(difference_columns(shown, args.first, args.second))))
    if len(shown) < len(differences):
        print(f"and {len(differences) - len(shown)} more")
    if args.out:
        print(f"\n  {args.out}")
    return 0


def _check_model(args: argparse.Namespace) -> None:
    """--model is for a checkpoint."""
    from zaq_timm.zoo.references import CHECKPOINTS

    if args.model and not any(name.endswith(CHECKPOINTS) for name in (args.first, args.second)):
        raise ValueError(
            f"--model {args.model} says whose weights a checkpoint has, and neither {args.first} "
            f"nor {args.second} is one ({', '.join(CHECKPOINTS)}); a model itself is A or B."
        )


def _fail(command: str, error: object) -> int:
    print(f"zaq-quantize {command}: error: {error}", file=sys.stderr)
    return 2
