"""The field's methods as strategies of one pipeline: same model, same bits, same audit.

    from zaq_plugin.strategies import STRATEGIES, Request, apply

    request = Request(weight_bits=4, activation_bits=8, example_inputs=(images[:1],))
    applied = apply("pwlq", model, request)
    applied.model(images)  # the student: simulated, or of the host that the request names

A strategy is a composition of stages: before quantization (equalisation), where images come from,
which grid the weights get, which ranges the activations get, and what follows (bias correction,
reconstruction, training). Strategies compose by name: ``apply("omse+bias-correction", ...)``.
"""

from zaq_plugin.strategies.compose import apply, compose, synthetic_images
from zaq_plugin.strategies.prepared import quantize_prepared
from zaq_plugin.strategies.registry import PARTS, STRATEGIES
from zaq_plugin.strategies.request import Applied, Request
from zaq_plugin.strategies.stage import ImageStage, Stage, Strategy, Work

__all__ = [
    "PARTS",
    "STRATEGIES",
    "Applied",
    "ImageStage",
    "Request",
    "Stage",
    "Strategy",
    "Work",
    "apply",
    "compose",
    "quantize_prepared",
    "synthetic_images",
]
