"""`prepare`, `quantize`, `convert`: what every device's integration offers, for its own host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.strategies import Strategy
from zaq_plugin.strategies.stage import Stage
from zaq_plugin.student.host import Assignment
from zaq_pt2e.device.host import DeviceHost
from zaq_pt2e.device.making import holds_quantization, int8_graph, require_example
from zaq_pt2e.device.making import quantize as quantized


class Verbs:
    """The verbs of one host."""

    def __init__(self, host: DeviceHost) -> None:
        self.host = host

    def prepare(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        spec: QuantSpec | None = None,
        *,
        train: bool = False,
    ) -> GraphModule:
        """A float model, prepared: calibrate or train it, or `zaq_pt2e.quantize` it; then convert.

        Args:
            model: In evaluation mode; it is not touched.
            example_inputs: What it is called with.
            spec: The weights' format; ``PWLQSpec()`` (4 MAC bits, 5 stored) if None.
            train: For a training loop of your own.

        Raises:
            ValueError: torch.export cannot follow the model, or nothing of it can be quantized.
        """
        require_example(example_inputs, self.host.name)
        assignment = Assignment(PWLQSpec() if spec is None else spec)
        prepared = self.host.prepare(model, example_inputs, assignment, train=train).model
        assert isinstance(prepared, GraphModule)
        return prepared

    def quantize(
        self,
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
            **options: Further fields of `zaq_plugin.strategies.Request`: mean, std, seed, ...

        Raises:
            TypeError, ValueError: as in `zaq_plugin.strategies.apply`.
        """
        name = self.host.name
        return quantized(model, example_inputs, batches, method, stored_bits, name, **options)

    def convert(self, prepared: GraphModule) -> GraphModule:
        """A calibrated or trained model as the int8 graph of devices; the prepared one is kept."""
        converted = self.host.convert(prepared)
        assert isinstance(converted, GraphModule)
        return converted

    def ready(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        calibration: Iterable[Any] | None,
        method: Any,
        stored_bits: int,
        options: dict[str, Any],
    ) -> GraphModule:
        """The int8 graph of a float model, quantized now, or of a converted one.

        Raises:
            TypeError, ValueError: see `quantize` and `zaq_pt2e.device.making.int8_graph`.
        """
        name = self.host.name
        require_example(example_inputs, name)
        batches = None if calibration is None else list(calibration)
        if isinstance(model, GraphModule) and holds_quantization(model):
            if method is not None or options:
                raise ValueError(f"{name}: method and its options are for a float model.")
            return int8_graph(model, batches, name)
        chosen = "pwlq+gptq" if method is None else method
        student = self.quantize(
            model, example_inputs, batches, chosen, stored_bits=stored_bits, **options
        )
        return int8_graph(student, batches, name)
