"""What hosts make anew at every call though it never changes, made once a process of tests.

PT2E: `prepare_qat_pt2e`, `convert_pt2e` and the switch between training and evaluation export the
same patterns of BatchNorm and Dropout. ONNX: `torch.onnx.export` reads the source of the same
operators. Together they take most of a small test's time.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

from torch import Tensor, nn

PATTERNS = "_get_aten_graph_module_for_pattern"


def install() -> None:
    """Put the caches into the hosts that are imported by now."""
    utils = sys.modules.get("torchao.quantization.pt2e.utils")
    if utils is not None and not hasattr(original := getattr(utils, PATTERNS), "cache"):
        cached = caching(original)
        for module in list(sys.modules.values()):
            if vars(module).get(PATTERNS) is original:
                setattr(module, PATTERNS, cached)
    if "zaq_onnx" in sys.modules:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
            ONNXRegistry.from_torchlib = staticmethod(registries(ONNXRegistry))  # type: ignore[method-assign]


def registries(kind: type[Any]) -> Callable[[int], Any]:
    """``kind.from_torchlib``, which answers with copies."""
    read = functools.lru_cache(kind.from_torchlib)

    @functools.wraps(read)
    def from_torchlib(*opset_version: int, **named: int) -> Any:
        registry = copy.copy(read(*opset_version, **named))
        registry.functions = {key: list(metas) for key, metas in registry.functions.items()}
        return registry

    from_torchlib.cache_info = read.cache_info  # type: ignore[attr-defined]
    return from_torchlib


def caching(export: Callable[..., Any]) -> Callable[..., Any]:
    """``export(pattern, example_inputs, is_cuda, **kwargs)``, which answers with copies."""
    cache: dict[Hashable, Any] = {}

    @functools.wraps(export)
    def exported(pattern: Any, *args: Any, **kwargs: Any) -> Any:
        key = (key_of(pattern), key_of(args), key_of(sorted(kwargs.items())))
        if key not in cache:
            cache[key] = export(pattern, *args, **kwargs)
        return copy.deepcopy(cache[key])

    exported.cache = cache  # type: ignore[attr-defined]
    return exported


def key_of(value: Any) -> Hashable:
    """What an exported pattern depends on: code and closures, shapes and types of tensors."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype, value.device)
    if isinstance(value, nn.Module):  # the host wraps its functions; the class is made at each call
        state = {k: v for k, v in vars(value).items() if k not in vars(nn.Module())}
        return (value.training, key_of(type(value).forward), key_of(sorted(state.items())))
    if isinstance(value, FunctionType):
        cells = tuple(key_of(cell.cell_contents) for cell in value.__closure__ or ())
        return (value.__code__, cells, key_of(value.__defaults__))
    if isinstance(value, tuple | list):
        return tuple(key_of(item) for item in value)
    if not isinstance(value, Hashable):
        raise TypeError(f"a pattern depends on a {type(value).__name__}, which has no key")
    return value
