"""``python -m benchmarks``: what can be asked, a line each."""

from __future__ import annotations

import ast
from pathlib import Path


def questions() -> dict[str, str]:
    """Modules that ``python -m`` runs, and the first line of what each says of itself."""
    found = {}
    here = Path(__file__).resolve().parent
    for path in [*here.glob("*.py"), *here.glob("*/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if runs and path.name not in ("__main__.py", "__init__.py"):
            parts = path.relative_to(here.parent).with_suffix("").parts
            whole = path.name == "run.py" and (path.parent / "__main__.py").exists()
            name = ".".join(parts[:-1] if whole else parts)
            found[name] = (ast.get_docstring(tree) or "").splitlines()[0]
    return dict(sorted(found.items()))


def main() -> None:
    """Print them."""
    for name, words in questions().items():
        print(f"python -m {name} --help\n    {words}")


if __name__ == "__main__":
    main()
