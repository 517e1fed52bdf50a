"""``python -m zaq_onnx``: look at a file, pack it, unpack it, verify it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zaq_onnx import info, pack, unpack, verify


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m zaq_onnx", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("info", help="layers, bits and bytes of a file")
    one.add_argument("file", type=Path)
    one = commands.add_parser("verify", help="check a file, and load it in the runtimes")
    one.add_argument("file", type=Path)
    for name, text in (("pack", "int8 weights to codes"), ("unpack", "codes to int8 weights")):
        one = commands.add_parser(name, help=text)
        one.add_argument("file", type=Path)
        one.add_argument("target", type=Path)
        if name == "pack":
            text = "UINT4 codes, which take slightly less room and run in fewer runtimes"
            one.add_argument("--smallest", action="store_true", help=text)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 if all is well, 1 with one line on stderr if not."""
    options = build_parser().parse_args(arguments)
    try:
        if options.command == "info":
            print(info(options.file))
        elif options.command == "verify":
            verdict = verify(options.file)
            print(verdict)
            return 0 if verdict.ok else 1
        else:
            if options.command == "pack":
                size = pack(options.file, options.target, portable=not options.smallest)
            else:
                size = unpack(options.file, options.target)
            print(f"{options.target}: {size:,} bytes")
    except (OSError, ValueError) as error:
        print(f"zaq_onnx: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
