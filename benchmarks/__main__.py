"""``python -m benchmarks``: what can be asked, a line each."""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).resolve().parent
_PROCESSES = (HERE / "peers" / "run.py", HERE / "speed" / "rows.py")
"""What other modules start, for each row a process."""


def questions() -> dict[str, str]:
    """Modules that ``python -m`` runs, and the first line of what each says of itself."""
    found = {}
    for path in HERE.glob("*/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if runs and path not in _PROCESSES:
            parts = path.relative_to(HERE.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if path.stem in ("run", "__main__") else parts)
            found[name] = (ast.get_docstring(tree) or "").splitlines()[0]
    return dict(sorted(found.items()))


def main() -> None:
    """Print them."""
    for name, words in questions().items():
        print(f"python -m {name} --help\n    {words}")


if __name__ == "__main__":
    main()
