"""LiteRT as a host: PT2E's algorithms, and the graph that its int8 kernels take."""

from __future__ import annotations

from zaq_pt2e.device.host import DeviceHost, Verbs

HOST = DeviceHost("litert")
"""Converted graphs are what `zaq_litert.export` writes."""
VERBS = Verbs(HOST)
prepare, quantize, convert = VERBS.prepare, VERBS.quantize, VERBS.convert
