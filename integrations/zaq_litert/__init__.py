"""PWLQ on phones by LiteRT: one `.tflite` file in int8, verified as its interpreter runs it.

made = zaq_litert.export(model, (images,), "model.tflite")
print(zaq_litert.verify("model.tflite", made.model, images))
"""

# ruff: noqa: E402  (versions are judged before anything of the tool is imported)
from zaq_plugin._versions import require_torch, require_version

require_torch("zaq_litert", below="2.15")
require_version("litert-torch", "0.10", "0.11", "zaq_litert", "litert")
require_version("ai-edge-litert", "2.3", "2.4", "zaq_litert", "litert")
require_version("torchao", "0.17", "0.19", "zaq_litert", "litert")

from zaq_litert.export import Exported, export
from zaq_litert.host import convert, prepare, quantize
from zaq_litert.verify import verify
from zaq_pt2e.device.verdict import DeviceVerification

__all__ = [
    "DeviceVerification",
    "Exported",
    "convert",
    "export",
    "prepare",
    "quantize",
    "verify",
]
