"""Piecewise linear quantization (PWLQ) and zero-shot fine-tuning (ZAQ) for PyTorch.

The number format lives in `zaq_plugin.pwlq`, what happens to a model before training in
`zaq_plugin.ptq`, tables and the HTML page in `zaq_plugin.report`. This package knows torch and
nothing else; each quantization tool that it plugs into has a package of its own (`zaq_fx`,
`zaq_pt2e`, ...).

The name `fake_quantize` is both a function, found here, and a module of fake-quantizers, found by
`from zaq_plugin.fake_quantize import ...`.
"""

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
    from zaq_plugin.zero_shot import ZeroShotConfig, ZeroShotLoader, zero_shot_finetune

__version__ = "0.1.0"

# Found when asked for: they bring the whole of zero_shot along.
_LATER = ("ZeroShotConfig", "ZeroShotLoader", "zero_shot_finetune")


def __getattr__(name: str) -> object:
    if name in _LATER:
        from zaq_plugin import zero_shot

        return getattr(zero_shot, name)
    raise AttributeError(f"module 'zaq_plugin' has no attribute {name!r}")


__all__ = [
    "PWLQSpec",
    "PWLQTensor",
    "QuantSpec",
    "UniformSpec",
    "ZeroShotConfig",
    "ZeroShotLoader",
    "__version__",
    "correct_mean_std",
    "fake_quantize",
    "load_quantized",
    "quantize",
    "save_quantized",
    "solve_edges",
    "spec_from_json",
    "zero_shot_finetune",
]
