"""Export to int8-exact ONNX, packed to PWLQ's file size, verified under stock runtimes.

exported = zaq_onnx.export(converted, (images,), "model.onnx")
print(zaq_onnx.verify("model.onnx", converted, (images,)))
"""

# ruff: noqa: E402  (versions are judged before anything of the hosts is imported)
from zaq_plugin._versions import require_torch, require_version

require_torch("zaq_onnx")
require_version("onnx", "1.19", "1.24", "zaq_onnx", "onnx")
require_version("onnxruntime", "1.22", "1.33", "zaq_onnx", "onnx")
require_version("onnxscript", "0.5", "0.8", "zaq_onnx", "onnx")

from zaq_onnx.adapters.registry import ADAPTERS
from zaq_onnx.export import Exported, export
from zaq_onnx.files import load
from zaq_onnx.info import info
from zaq_onnx.packing import pack, unpack
from zaq_onnx.verdict import Verification
from zaq_onnx.verify import verify

__all__ = [
    "ADAPTERS",
    "Exported",
    "Verification",
    "export",
    "info",
    "load",
    "pack",
    "unpack",
    "verify",
]
