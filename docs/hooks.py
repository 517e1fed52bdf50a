"""What mkdocs does beside rendering: pages of the repository's root, links out of docs, errors.

The site also has ARCHITECTURE.md, CONTRIBUTING.md, the changelog and the tables of
`benchmarks/results/`, at the same places beside `docs/`, so that links between them hold in both.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROOT_PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
ERRORS = "how_to/errors.md"
RAISED = {
    "ValueError", "TypeError", "ImportError", "RunError", "LeftOut", "FileNotFoundError",
    "RuntimeError", "OutOfMemory", "TrainingDiverged", "AttributeError", "KeyError",
    "ArgumentTypeError",
}  # fmt: skip
SOURCES = ("zaq_plugin", "integrations")
ERRORS_INTRODUCTION = """\
# All errors

Every text that zaq_plugin raises, by package, as the sources have it: search for a few words of
yours. What varies is shown as `…`. Those that are met most are in
[troubleshooting](troubleshooting.md), with more words.
"""


def on_files(files: Any, config: Any) -> Any:
    """Adds the repository's own pages and the page of errors."""
    from mkdocs.structure.files import File

    for name in ROOT_PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text("utf-8")))
    for path in sorted((ROOT / "benchmarks" / "results").iterdir()):
        if path.suffix in (".md", ".html"):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, content=path.read_text("utf-8")))
    for path in sorted((ROOT / "examples").iterdir()):
        if path.suffix in (".py", ".ipynb"):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, content=path.read_text("utf-8")))
    files.append(File.generated(config, ERRORS, content=errors_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links from `docs/` to the root, and from the root to `docs/`, as the site has them."""
    place = page.file.src_uri
    if place in ROOT_PAGES:
        return markdown.replace("](docs/", "](").replace("](README.md", "](index.md")
    if place.startswith("benchmarks/"):
        return markdown.replace("](../../docs/", "](../../")
    up = "../" * (place.count("/") + 1)  # leaves docs/
    return markdown.replace(f"]({up}", f"]({up[3:]}")


def errors_page() -> str:
    """The texts of all errors, by package."""
    lines = [ERRORS_INTRODUCTION]
    for package, texts in error_texts().items():
        lines += [f"\n## {package}\n", *(f"* `{text.replace('`', chr(39))}`" for text in texts)]
    return "\n".join(lines) + "\n"


def error_texts() -> dict[str, list[str]]:
    """Package to the texts that it raises, in alphabetical order; ``…`` for what varies."""
    found: dict[str, set[str]] = {}
    for top in SOURCES:
        for path in sorted((ROOT / top).rglob("*.py")):
            base = ROOT if top == "zaq_plugin" else ROOT / top
            parts = path.relative_to(base).with_suffix("").parts
            package = ".".join(parts[:2]) if parts[0] == "zaq_plugin" else parts[0]
            texts = set(texts_raised(path.read_text(encoding="utf-8")))
            found.setdefault(package, set()).update(texts)
    return {name: sorted(texts, key=str.lower) for name, texts in found.items() if texts}


def texts_raised(source: str) -> Iterator[str]:
    """The texts of the errors that a source makes itself, where it raises them or for others."""
    tree = ast.parse(source)
    for call in _calls(tree):
        for text in _texts(call.args[0], _assigned(tree)) if call.args else ():
            if len(text.replace("…", "").split()) >= 2:
                yield text


def raises_without_text(source: str) -> Iterator[str]:
    """Raised errors whose text `texts_raised` does not find, as the source has them."""
    tree = ast.parse(source)
    for call in _calls(tree):
        texts = _texts(call.args[0], _assigned(tree)) if call.args else ()
        if not any(len(text.replace("…", "").split()) >= 2 for text in texts):
            yield ast.unparse(call)


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Errors that are made."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            func = node.func
            name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
            if name in RAISED or ast.unparse(func) == "type(error)":
                yield node


def _assigned(tree: ast.AST) -> dict[str, list[ast.expr]]:
    """What names in a source stand for."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    return found


def _texts(node: ast.expr, names: dict[str, list[ast.expr]]) -> Iterator[str]:
    if isinstance(node, ast.Name) and node.id in names:
        for value in names[node.id]:
            if not isinstance(value, ast.Name):
                yield from _texts(value, names)
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, names)
        yield from _texts(node.orelse, names)
    else:
        yield _template(node)


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return re.sub(r"\s+", " ", str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return "…"


def main(words: list[str]) -> None:
    """Prints the texts of all errors, or those with all of these words."""
    for package, texts in error_texts().items():
        for text in texts:
            if all(word.lower() in text.lower() for word in words):
                print(f"{package}: {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
