"""The PWLQ number format: specs, breakpoints, levels, operators, packing.

Piecewise linear quantization (Fang et al., ECCV 2020): fine in the center, coarse in the tails,
computed with integers.
"""

from zaq_plugin.pwlq import ops as ops
from zaq_plugin.pwlq.base import Format, QuantSpec
from zaq_plugin.pwlq.functional import correct_mean_std, correct_spread, fake_quantize, quantize
from zaq_plugin.pwlq.packing import entropy_bits, pack_codes, packed_size, unpack_codes
from zaq_plugin.pwlq.piecewise import PWLQSpec
from zaq_plugin.pwlq.ranges import (
    minmax_range,
    percentile_range,
    solve_edges,
    topk_median_range,
    uniform_qparams,
)
from zaq_plugin.pwlq.registry import spec_from_json, spec_from_name
from zaq_plugin.pwlq.statistics import sqnr_db
from zaq_plugin.pwlq.tensor import PWLQTensor, load_quantized, save_quantized
from zaq_plugin.pwlq.uniform import UniformSpec

__all__ = [
    "Format",
    "PWLQSpec",
    "PWLQTensor",
    "QuantSpec",
    "UniformSpec",
    "correct_mean_std",
    "correct_spread",
    "entropy_bits",
    "fake_quantize",
    "load_quantized",
    "minmax_range",
    "pack_codes",
    "packed_size",
    "percentile_range",
    "quantize",
    "save_quantized",
    "solve_edges",
    "spec_from_json",
    "spec_from_name",
    "sqnr_db",
    "topk_median_range",
    "uniform_qparams",
    "unpack_codes",
]
