"""Every runtime that `verify` knows, by name."""

from __future__ import annotations

from zaq_onnx.adapters.adapter import Adapter
from zaq_onnx.adapters.node import OnnxRuntimeNode, OnnxRuntimeWeb
from zaq_onnx.adapters.others import OpenCv, OpenCvClassic, Tinygrad, Tract, Tvm
from zaq_onnx.adapters.stock import OnnxRuntime, OpenVino, OpenVinoConverted, Reference

ADAPTERS: dict[str, type[Adapter]] = {
    adapter.name: adapter
    for adapter in (
        OnnxRuntime,
        OpenVino,
        OpenVinoConverted,
        OpenCv,
        OpenCvClassic,
        Tract,
        Tvm,
        Tinygrad,
        Reference,
        OnnxRuntimeNode,
        OnnxRuntimeWeb,
    )
}
