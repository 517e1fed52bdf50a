"""ExecuTorch as a host: PT2E's algorithms, and the graph that XNNPACK's int8 kernels take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.strategies import Strategy
from zaq_plugin.strategies.stage import Stage
from zaq_plugin.student.host import Assignment
from zaq_pt2e.device import making
from zaq_pt2e.device.host import DeviceHost


class ExecuTorch(DeviceHost):
    """Converted graphs are what `zaq_executorch.export` writes."""

    name = "executorch"


HOST = ExecuTorch()


def prepare(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    spec: QuantSpec | None = None,
    *,
    train: bool = False,
) -> GraphModule:
    """A float model, prepared: calibrate or train it, or `zaq_pt2e.quantize` it, then `convert`.

    Args:
        model: In evaluation mode; it is not touched.
        example_inputs: What it is called with.
        spec: The weights' format; ``PWLQSpec()`` (4 MAC bits, 5 stored) if None.
        train: For a training loop of your own.

    Raises:
        ValueError: torch.export cannot follow the model, or nothing of it can be quantized.
    """
    making.require_example(example_inputs, HOST.name)
    assignment = Assignment(PWLQSpec() if spec is None else spec)
    made = HOST.prepare(model, example_inputs, assignment, train=train).model
    assert isinstance(made, GraphModule)
    return made


def quantize(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    batches: Iterable[Tensor] | None = None,
    method: str | Strategy | list[str | Strategy | Stage] = "pwlq+gptq",
    *,
    stored_bits: int = 5,
    **options: Any,
) -> GraphModule:
    """A float model of images, quantized by a published method and converted.

    Args:
        model: In evaluation mode; it is not touched.
        example_inputs: What it is called with, images (n, C, H, W) first.
        batches: Calibration images; without them images are made from the model's BatchNorms.
        method: A strategy of `zaq_plugin.strategies`, or several joined by ``+``.
        stored_bits: Bits of a weight's code; a PWLQ weight has one MAC bit less.
        **options: Further fields of `zaq_plugin.strategies.Request`: mean, std, seed, effort, ...

    Raises:
        TypeError, ValueError: as in `zaq_plugin.strategies.apply`.
    """
    return making.quantize(
        model, example_inputs, batches, method, stored_bits, HOST.name, **options
    )


def convert(prepared: GraphModule) -> GraphModule:
    """A calibrated or trained model as the int8 graph of XNNPACK; the prepared one is kept."""
    converted = HOST.convert(prepared)
    assert isinstance(converted, GraphModule)
    return converted
