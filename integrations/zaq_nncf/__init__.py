"""PWLQ and zero-shot fine-tuning in NNCF: quantize, train, strip, export.

    quantized = zaq_nncf.quantize(model, loader, PWLQSpec(bits=4))
    ...                                                  # train it, in your loop or without data
    stripped = zaq_nncf.strip(quantized)
    torch.onnx.export(stripped, (images,), "model.onnx", dynamo=True)

`register` puts PWLQ into plain ``nncf.quantize`` calls; `audit` tells what happened to each layer.
"""

# ruff: noqa: E402  (versions are judged before anything of NNCF is imported)
from zaq_plugin._versions import require_torch, require_version

require_torch("zaq_nncf")
require_version("nncf", "3.4", "3.5", "zaq_nncf", "nncf")

from zaq_nncf.audit import audit
from zaq_nncf.checkpoint import ALLOWED_MODULES, load_checkpoint, save_checkpoint
from zaq_nncf.extension import compile_extension
from zaq_nncf.flow import quantize
from zaq_nncf.preparation import prepare_model
from zaq_nncf.registration import is_registered, register, unregister
from zaq_nncf.stripping import strip
from zaq_nncf.student import twin

__all__ = [
    "ALLOWED_MODULES",
    "audit",
    "compile_extension",
    "is_registered",
    "load_checkpoint",
    "prepare_model",
    "quantize",
    "register",
    "save_checkpoint",
    "strip",
    "twin",
    "unregister",
]
