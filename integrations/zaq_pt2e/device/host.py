"""What every device's integration offers: a host, and its verbs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.strategies import Request, Strategy, apply
from zaq_plugin.strategies.stage import Stage
from zaq_plugin.student.host import Assignment
from zaq_pt2e.device.making import (
    check_options,
    holds_quantization,
    images_of,
    int8_graph,
    require_example,
)
from zaq_pt2e.device.signed import is_converted, to_int8
from zaq_pt2e.host import PT2E


class DeviceHost(PT2E):
    """PT2E, with a grid behind every layer and int8 in place of uint8 activations.

    Args:
        name: Of the tool.
    """

    outputs = True

    def __init__(self, name: str = "device") -> None:
        self.name = name

    def convert(self, model: nn.Module) -> nn.Module:
        """The int8 graph, ready to be written."""
        converted = super().convert(model)
        assert isinstance(converted, GraphModule)
        return to_int8(converted, self.name)

    def why_not(self, assignment: Assignment) -> str | None:
        """Its int8 kernels take 8-bit activations only, in every layer that they run."""
        reason = super().why_not(assignment)
        if reason is not None:
            return reason
        widths: dict[str, Any] = {
            "the model's own input": assignment.input_bits or 8,
            "every layer's input": assignment.activations,
        }
        for name, formats in assignment.layers.items():
            if formats is not None and formats[0] is not None:
                widths[name] = formats[1]
        for name, bits in widths.items():
            if bits != 8:
                width = "float activations" if bits is None else f"{bits}-bit activations"
                return (
                    f"{self.name} multiplies int8 by int8, and {name} has {width}; use 8 bits "
                    "(a layer may stay float altogether)"
                )
        return None


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
        require_example(example_inputs, name)
        if is_converted(model):
            raise ValueError(f"{name}: this model is converted already; expected a float one.")
        check_options(options, name)
        images = None if batches is None else images_of(batches, name)
        known: dict[str, Any] = {"example_inputs": example_inputs, "images": images, "host": name}
        student = apply(method, model, Request(stored_bits, 8, **known, **options)).model
        return self.convert(student)

    def convert(self, prepared: nn.Module) -> GraphModule:
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
