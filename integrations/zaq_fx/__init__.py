"""PWLQ in torch.ao's FX graph mode quantization.

With the stock functions::

    backend = pwlq_backend_config()
    model = prepare_model(model)
    prepared = prepare_fx(model, pwlq_qconfig_mapping(PWLQSpec(bits=4)), inputs,
                          backend_config=backend)
    calibrate(prepared, batches)
    converted = convert_fx(prepared, backend_config=backend)

or, in two calls, `prepare` and `convert`. `audit` tells what happened to each layer.
"""

# ruff: noqa: E402  (torch's version is judged before anything of torch.ao is imported)
from zaq_plugin._versions import require_torch

require_torch("zaq_fx")

from zaq_fx._compat import HostNote, show_host_warnings
from zaq_fx.activations import clamp_narrow, keep_wide, narrow_ranges
from zaq_fx.audit import audit, integer_weight
from zaq_fx.backend import pwlq_backend_config
from zaq_fx.calibrate import calibrate, correct_bias, quantize
from zaq_fx.flow import convert, prepare
from zaq_fx.qconfig import pwlq_qat_qconfig_mapping, pwlq_qconfig, pwlq_qconfig_mapping
from zaq_fx.surgery import prepare_model
from zaq_fx.twin import twin

__all__ = [
    "HostNote",
    "audit",
    "calibrate",
    "clamp_narrow",
    "convert",
    "correct_bias",
    "integer_weight",
    "keep_wide",
    "narrow_ranges",
    "prepare",
    "prepare_model",
    "pwlq_backend_config",
    "pwlq_qat_qconfig_mapping",
    "pwlq_qconfig",
    "pwlq_qconfig_mapping",
    "quantize",
    "show_host_warnings",
    "twin",
]
