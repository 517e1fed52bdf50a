"""PWLQ on phones by ExecuTorch: one `.pte` file, int8 kernels of XNNPACK, verified as it runs.

made = zaq_executorch.export(model, (images,), "model.pte")
print(zaq_executorch.verify("model.pte", made.model, images))
"""

# ruff: noqa: E402  (versions are judged before anything of the tool is imported)
from zaq_plugin._versions import require_torch, require_version

require_torch("zaq_executorch")
require_version("executorch", "1.5", "1.6", "zaq_executorch", "executorch")
require_version("torchao", "0.18", "0.19", "zaq_executorch", "executorch")

from zaq_executorch.export import Exported, export
from zaq_executorch.host import convert, prepare, quantize
from zaq_executorch.verify import verify
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
