"""`zaq-quantize pack` and `unpack` on the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zaq_timm.verifying import existing

PACK = """\
Writes an archive of a file for devices (.onnx, .pte, .tflite) for downloads: int8 weights of PWLQ
become codes, which are entropy coded; all else is compressed. Unpacking gives the same file, bit
for bit, and needs none of the tools that wrote it."""

PACK_EXAMPLES = """\
examples
  zaq-quantize pack model.pte                    writes model.pte.zaq
  zaq-quantize pack model.onnx small.zaq
  zaq-quantize unpack model.pte.zaq              writes model.pte"""

UNPACK = """\
Writes the file that `zaq-quantize pack` has packed, bit for bit. If the archive is damaged, or the
file is there and holds something else, nothing is written."""


def add_archiving(commands: Any, formatter: Any) -> None:
    """Adds the commands to a parser's.

    Args:
        commands: What ``add_subparsers`` returned.
        formatter: How help is laid out.
    """
    pack = commands.add_parser(
        "pack",
        help="make a file for devices small for download",
        description=PACK,
        epilog=PACK_EXAMPLES,
        formatter_class=formatter,
    )
    pack.add_argument("file", type=existing, metavar="FILE", help="a .onnx, .pte or .tflite file")
    pack.add_argument("out", type=Path, nargs="?", metavar="OUT", help="default: FILE.zaq")
    pack.set_defaults(run=pack_command)
    unpack = commands.add_parser(
        "unpack", help="undo pack, bit for bit", description=UNPACK, formatter_class=formatter
    )
    unpack.add_argument("file", type=existing, metavar="FILE", help="what pack has written")
    unpack.add_argument("out", type=Path, nargs="?", metavar="OUT", help="default: without .zaq")
    unpack.add_argument(
        "--force", action="store_true", help="replace OUT if it is there and holds something else"
    )
    unpack.set_defaults(run=unpack_command)


def pack_command(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    from zaq_plugin import archive

    try:
        print(archive.pack(args.file, args.out))
    except (ImportError, OSError, ValueError) as error:
        print(f"zaq-quantize pack: error: {error}", file=sys.stderr)
        return 1
    return 0


def unpack_command(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    from zaq_plugin.archive.files import restore

    try:
        path = restore(args.file, args.out, overwrite=args.force)
    except (OSError, ValueError) as error:
        print(f"zaq-quantize unpack: error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1000:,.1f} kB, as packed")
    return 0
