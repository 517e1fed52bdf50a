"""Settings from a TOML or YAML file; a library does the reading."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from zaq_timm.zoo.settings import check_names


def read_settings(path: Path) -> dict[str, Any]:
    """Names and values in a settings file; `Settings` judges the values, flags included.

    Args:
        path: ends in .toml, .yaml or .yml. Names are the flags', with - or _.

    Raises:
        ValueError: not such a file, or one with an unknown name; the text names the file.
        OSError: it cannot be read.
        ImportError: YAML, and PyYAML is missing.
    """
    kind = path.suffix.lower()
    if kind not in (".toml", ".yaml", ".yml"):
        raise ValueError(f"{path}: a settings file ends in .toml, .yaml or .yml.")
    if not path.is_file():
        raise FileNotFoundError(f"settings: there is no file {path}.")
    text = path.read_text(encoding="utf-8")
    try:
        values = tomllib.loads(text) if kind == ".toml" else _yaml(text)
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ValueError(f"expected names and values, got a {type(values).__name__}.")
        plain = {str(name).replace("-", "_"): value for name, value in values.items()}
        for name in ("models", "exclude"):
            if isinstance(plain.get(name), str):
                plain[name] = [plain[name]]
        check_names(plain)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return plain


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "YAML settings need PyYAML, which is not installed; install it with: pip install "
            "'zaq_plugin[yaml]', or write the settings in TOML."
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
