"""NNCF as a host."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zaq_nncf.audit import audit
from zaq_nncf.flow import quantize
from zaq_nncf.stripping import strip
from zaq_plugin.pwlq.base import is_simulated
from zaq_plugin.report import Audit
from zaq_plugin.student.host import Assignment, Prepared


class NNCF:
    """``nncf.quantize`` with PWLQ weights, and ``nncf.strip``."""

    name = "nncf"
    kernels = "int8"

    def prepare(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        assignment: Assignment,
        *,
        train: bool = False,
    ) -> Prepared:
        """See `zaq_plugin.student.Host`; ranges are those of the example."""
        activations: Any = assignment.activations
        within = assignment.within(dict(model.named_modules()))
        own = {name: None if formats is None else formats[0] for name, formats in within.items()}
        example = example_inputs[0] if len(example_inputs) == 1 else tuple(example_inputs)
        batches: list[Any] = [example if isinstance(example, Tensor) else example_inputs]
        quantized = quantize(
            model,
            batches,
            assignment.weights,
            activations=activations,
            overrides={n: s for n, s in own.items() if s != assignment.weights},
            bias_correction=None,
            learnable=train,
            observer=assignment.observer,
        )
        notes = [
            f"nncf: {name} is NNCF's own int8, where it was to stay float"
            for name, formats in within.items()
            if formats is None
        ]
        return Prepared(quantized, notes)

    def convert(self, model: nn.Module) -> nn.Module:
        """The stripped model, for export."""
        return strip(model)

    def audit(self, model: nn.Module) -> Audit:
        """See `zaq_nncf.audit`."""
        return audit(model)

    def why_not(self, assignment: Assignment) -> str | None:
        """One grid a weight, float activations and simulated formats are not for NNCF."""
        if assignment.per_tensor:
            return "nncf gives weights one grid per output channel; use granularity='channel'"
        if is_simulated(assignment.activations) or assignment.activations is None:
            return "nncf quantizes activations to 2 to 8 uniform bits"
        return None


HOST = NNCF()
