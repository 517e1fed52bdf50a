"""The names of number formats; each format is a file of its own."""

from zaq_plugin.pwlq.base import Format, GridKind, Overflow, Symmetry
from zaq_plugin.pwlq.piecewise import Policy, PWLQSpec
from zaq_plugin.pwlq.registry import spec_from_json, spec_from_name
from zaq_plugin.pwlq.uniform import UniformSpec

QuantSpec = Format
"""What annotations call it."""

__all__ = [
    "Format",
    "GridKind",
    "Overflow",
    "PWLQSpec",
    "Policy",
    "QuantSpec",
    "Symmetry",
    "UniformSpec",
    "spec_from_json",
    "spec_from_name",
]
