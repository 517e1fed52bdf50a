"""PWLQ in torchao's PT2E quantization: prepare, calibrate or train, convert, run in int8."""

from zaq_plugin._versions import require_torch, require_version

require_torch("zaq_pt2e")
require_version("torchao", "0.17", "0.19", "zaq_pt2e", "pt2e")

from zaq_pt2e.audit import audit  # noqa: E402
from zaq_pt2e.batch_norm import set_training  # noqa: E402
from zaq_pt2e.calibrate import (  # noqa: E402
    calibrate,
    correct_bias,
    freeze_ranges,
    quantize,
    twin,
)
from zaq_pt2e.decorator import PWLQDecorated, with_pwlq  # noqa: E402
from zaq_pt2e.flow import convert, lower  # noqa: E402
from zaq_pt2e.packing import pack, unpack  # noqa: E402
from zaq_pt2e.quantizer import PWLQQuantizer  # noqa: E402

__all__ = [
    "PWLQDecorated",
    "PWLQQuantizer",
    "audit",
    "calibrate",
    "convert",
    "correct_bias",
    "freeze_ranges",
    "lower",
    "pack",
    "quantize",
    "set_training",
    "twin",
    "unpack",
    "with_pwlq",
]
