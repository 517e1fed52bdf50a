"""torchao's PT2E as a host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e

from zaq_plugin.errors import in_short
from zaq_plugin.report import Audit
from zaq_plugin.student.host import Assignment, Prepared, why_not_int8
from zaq_pt2e.audit import audit
from zaq_pt2e.batch_norm import set_training
from zaq_pt2e.flow import convert
from zaq_pt2e.graph import layers
from zaq_pt2e.quantizer import PWLQQuantizer


class PT2E:
    """torch.export, prepare_pt2e or prepare_qat_pt2e, and convert_pt2e."""

    name = "pt2e"
    kernels = "int8"
    outputs = False
    """Whether layers' outputs get grids of their own."""

    def prepare(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        assignment: Assignment,
        *,
        train: bool = False,
    ) -> Prepared:
        """See `zaq_plugin.student.Host`. Batches have any size, if torch.export can do that."""
        graph, fixed, notes = export(model, tuple(map(_two, example_inputs)))
        activations: Any = assignment.activations
        own: dict[Any, Any] = assignment.within({layer.original for layer in layers(graph)})
        quantizer = PWLQQuantizer(
            assignment.weights,
            activations,
            overrides=own,
            qat=train,
            observer=assignment.observer,
            input_bits=assignment.input_bits or activations or 8,
            bias_correction=False,
            outputs=self.outputs,
        )
        prepared = (prepare_qat_pt2e if train else prepare_pt2e)(graph, quantizer)
        set_training(prepared, False)
        return Prepared(prepared, notes, fixed)

    def convert(self, model: nn.Module) -> nn.Module:
        """See `zaq_pt2e.convert`."""
        assert isinstance(model, GraphModule)
        return convert(model)

    def audit(self, model: nn.Module) -> Audit:
        """See `zaq_pt2e.audit`."""
        assert isinstance(model, GraphModule)
        return audit(model)

    def why_not(self, assignment: Assignment) -> str | None:
        """One grid a weight and simulated formats are not for int8 kernels."""
        return why_not_int8(assignment, self.name)


def export(
    model: nn.Module, example_inputs: tuple[Any, ...]
) -> tuple[GraphModule, int | None, list[str]]:
    """The exported graph; the one batch size that it takes, if it takes one only; remarks.

    Raises:
        ValueError: torch.export cannot follow the model.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} if _batched(x) else None for x in example_inputs)
    try:
        program = torch.export.export(model, example_inputs, dynamic_shapes=shapes)
        return program.module(), None, []
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        first = in_short(error)
    try:
        program = torch.export.export(model, example_inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(f"torch.export cannot follow it: {in_short(error)}") from error
    size = next((x.shape[0] for x in example_inputs if _batched(x)), None)
    note = f"exported for batches of {size} only; any size failed: {first}"
    return program.module(), size, [note]


def _two(x: Any) -> Any:
    """At least two samples: torch.export takes a batch of one for a constant."""
    return torch.cat([x, x]) if _batched(x) and x.shape[0] == 1 else x


def _batched(x: object) -> bool:
    return isinstance(x, Tensor) and x.dim() > 1


HOST = PT2E()
