"""Piecewise linear quantization (PWLQ) and zero-shot fine-tuning (ZAQ) for PyTorch.

The number format lives in `zaq_plugin.pwlq`, what happens to a model before training in
`zaq_plugin.ptq`, whole methods in `zaq_plugin.strategies`, training without data in
`zaq_plugin.zero_shot`, tables and the HTML page in `zaq_plugin.report`. This package knows torch
and nothing else; each quantization tool that it plugs into has a package of its own (`zaq_fx`,
`zaq_pt2e`, ...).

The name `fake_quantize` is both a function, found here, and a module of fake-quantizers, found by
`from zaq_plugin.fake_quantize import ...`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# Before the function of the same name, which thereby wins as an attribute of this package: Python
# binds a submodule's name only when it is first imported.
import zaq_plugin.fake_quantize  # noqa: F401
from zaq_plugin.pwlq import (
    PWLQSpec,
    PWLQTensor,
    QuantSpec,
    UniformSpec,
    correct_mean_std,
    fake_quantize,
    load_quantized,
    quantize,
    save_quantized,
    solve_edges,
    spec_from_json,
)

if TYPE_CHECKING:
    from zaq_plugin.ptq import (
        audit,
        calibrate,
        correct_bias,
        fold_batch_norm,
        quantized_tensors,
        restore_layers,
        simulate,
    )
    from zaq_plugin.strategies import Request, apply
    from zaq_plugin.zero_shot import ZeroShotConfig, ZeroShotLoader, zero_shot_finetune

__version__ = "0.2.0"

# Found when asked for, so that an import stays cheap: name to the part that has it.
_LATER = {
    **dict.fromkeys(
        (
            "audit",
            "calibrate",
            "correct_bias",
            "fold_batch_norm",
            "quantized_tensors",
            "restore_layers",
            "simulate",
        ),
        "zaq_plugin.ptq",
    ),
    **dict.fromkeys(("Request", "apply"), "zaq_plugin.strategies"),
    **dict.fromkeys(
        ("ZeroShotConfig", "ZeroShotLoader", "zero_shot_finetune"), "zaq_plugin.zero_shot"
    ),
}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'zaq_plugin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "PWLQSpec",
    "PWLQTensor",
    "QuantSpec",
    "Request",
    "UniformSpec",
    "ZeroShotConfig",
    "ZeroShotLoader",
    "__version__",
    "apply",
    "audit",
    "calibrate",
    "correct_bias",
    "correct_mean_std",
    "fake_quantize",
    "fold_batch_norm",
    "load_quantized",
    "quantize",
    "quantized_tensors",
    "restore_layers",
    "save_quantized",
    "simulate",
    "solve_edges",
    "spec_from_json",
    "zero_shot_finetune",
]
