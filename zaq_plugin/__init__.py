"""Piecewise linear quantization (PWLQ) and zero-shot fine-tuning (ZAQ) for PyTorch.

The number format lives in `zaq_plugin.pwlq`, what happens to a model before training in
`zaq_plugin.ptq`, tables and the HTML page in `zaq_plugin.report`. This package knows torch and
nothing else; each quantization tool that it plugs into has a package of its own (`zaq_fx`,
`zaq_pt2e`, ...).
"""

__version__ = "0.1.0"
