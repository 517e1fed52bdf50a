"""Every private name and undocumented habit of NNCF that this package leans on, in one place.

``tests/integrations/zaq_nncf/test_host_facts.py`` pins each of them: it fails loudly, naming the
fact, when a new NNCF changes one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nncf
from nncf.common.graph.layer_attributes import ConstantLayerAttributes
from nncf.common.quantization.structs import QuantizationScheme
from nncf.quantization.algorithms.min_max.torch_backend import PTMinMaxAlgoBackend
from nncf.torch.extensions import EXTENSION_LOAD_TIMEOUT_ENV_VAR
from nncf.torch.function_hook.hook_executor_mode import FunctionHookMode
from nncf.torch.function_hook.hook_storage import HookStorage, decode_hook_name
from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph
from nncf.torch.function_hook.wrapper import get_hook_storage, is_wrapped
from nncf.torch.graph.operator_metatypes import (
    CONVOLUTION_METATYPES,
    MATMUL_METATYPES,
    QUANTIZE_NODE_TYPES,
)
from nncf.torch.model_graph_manager import get_const_node, get_weight_channel_axes
from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
from nncf.torch.quantization.layers import (
    AsymmetricQuantizer,
    BaseQuantizer,
    PTQuantizerSpec,
    SymmetricQuantizer,
)
from nncf.torch.quantization.reference import ReferenceQuantizedFunctions
from torch import nn
from torch._C import DisableTorchFunction
from torch.ao.quantization.fx import _decomposed  # registers quantized_decomposed's operators
from torch.overrides import (
    _get_current_function_mode_stack,
    handle_torch_function,
    has_torch_function_unary,
)

__all__ = [
    "HOOKS",
    "PLACING",
    "QUANTIZED_LIBRARY",
    "TIMEOUT_VARIABLE",
    "AsymmetricQuantizer",
    "BaseQuantizer",
    "ConstantLayerAttributes",
    "DisableTorchFunction",
    "FunctionHookMode",
    "HookStorage",
    "PTMinMaxAlgoBackend",
    "PTQuantizerSpec",
    "QuantizationScheme",
    "SymmetricQuantizer",
    "build_nncf_graph",
    "constant_at",
    "current_mode",
    "decode_hook_name",
    "extension_folder",
    "extension_is_loaded",
    "fell_back",
    "handle_torch_function",
    "has_torch_function_unary",
    "hooks_of",
    "is_quantize_node",
    "is_weighted",
    "is_wrapped",
    "load_extension",
    "weight_axis",
]

HOOKS = "__nncf_hooks"
"""Name of the submodule that holds NNCF's hooks."""

PLACING = (
    "create_quantizer_insertion_command",
    "create_unified_scales_quantizers_insertion_commands",
)
"""Static methods of the min-max backend that make a quantizer and say where it goes."""

QUANTIZED_LIBRARY = _decomposed.quantized_decomposed_lib

TIMEOUT_VARIABLE: str = EXTENSION_LOAD_TIMEOUT_ENV_VAR


def hooks_of(model: nn.Module) -> HookStorage:
    """The storage of NNCF's hooks.

    Raises:
        ValueError: the model did not come from NNCF.
    """
    if not is_wrapped(model):
        raise ValueError(
            f"expected a model from zaq_nncf.quantize or nncf.quantize; this {type(model).__name__}"
            " carries no hooks of NNCF."
        )
    return get_hook_storage(model)


def is_weighted(node: Any) -> bool:
    """Whether a node of NNCF's graph is a convolution or a matrix product."""
    return node.metatype in CONVOLUTION_METATYPES or node.metatype in MATMUL_METATYPES


def is_quantize_node(node: Any) -> bool:
    """Whether a node of NNCF's graph is a quantizer: it is known by its function's name."""
    return node.node_type in QUANTIZE_NODE_TYPES


def constant_at(node: Any, port: int, graph: Any) -> Any:
    """The constant that an operator reads at a port, through quantizers; None if it is no constant.

    NNCF raises where a value was computed.
    """
    try:
        return get_const_node(node, port, graph)
    except nncf.InternalError:
        return None


def weight_axis(node: Any, rank: int, port: int) -> int | None:
    """The output channels' axis of a weight, None if it has none."""
    axes = get_weight_channel_axes(node.metatype, rank, port)
    return int(axes[0]) if len(axes) else None


def load_extension() -> None:
    """Compile (once) and load NNCF's CPU kernels; NNCF's own time limit holds."""
    QuantizedFunctionsCPU.get("Quantize_forward")


def extension_folder() -> Path:
    """Where NNCF's CPU kernels are compiled to."""
    return Path(QuantizedFunctionsCPU._loader.get_build_dir())


def extension_is_loaded() -> bool:
    """Whether NNCF's CPU kernels are compiled and loaded in this process."""
    return QuantizedFunctionsCPU._loaded_namespace is not None


def fell_back() -> bool:
    """Whether NNCF could not compile its kernels and computes with torch's operators instead."""
    return QuantizedFunctionsCPU._loaded_namespace is ReferenceQuantizedFunctions


def current_mode() -> FunctionHookMode | None:
    """NNCF's function mode of the pass that is running, for hooks of modules; None outside."""
    modes = [m for m in _get_current_function_mode_stack() if isinstance(m, FunctionHookMode)]
    return modes[-1] if modes else None
