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
            action = pack if options.command == "pack" else unpack
            print(f"{options.target}: {action(options.file, options.target):,} bytes")
    except (OSError, ValueError) as error:
        print(f"zaq_onnx: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
