"""What the hosts of devices share; each adds its name."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import GraphModule

from zaq_plugin.student.host import Assignment
from zaq_pt2e.device.signed import to_int8
from zaq_pt2e.host import PT2E


class DeviceHost(PT2E):
    """PT2E, with a grid behind every layer and int8 in place of uint8 activations."""

    name = "device"
    outputs = True

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
