"""Files of the core that need no torch, without their package, which would load it."""

from __future__ import annotations

import functools
from importlib import util
from pathlib import Path
from types import ModuleType


@functools.cache
def core_file(name: str) -> ModuleType:
    """A module of `zaq_plugin` by itself; it may import the standard library alone.

    Args:
        name: Below the package, such as ``pwlq/names``.
    """
    package = util.find_spec("zaq_plugin")  # of a package at the top, which this does not import
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / f"{name}.py"
    spec = util.spec_from_file_location(f"zaq_light_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
