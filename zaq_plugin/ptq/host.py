"""Simulation as a host: layers compute with grid values in float, and nothing is converted."""

from __future__ import annotations

from typing import Any

from torch import nn

from zaq_plugin.ptq.auditing import audit
from zaq_plugin.ptq.simulate import simulate
from zaq_plugin.report import Audit
from zaq_plugin.student.host import Assignment, Prepared


class Simulation:
    """`simulate` as a `zaq_plugin.student.Host`."""

    name = "simulated"
    kernels = "float"

    def prepare(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        assignment: Assignment,
        *,
        train: bool = False,
    ) -> Prepared:
        """See `Host.prepare`; ``train`` makes no difference."""
        student = simulate(
            model,
            assignment.weights,
            assignment.activations,
            overrides=dict(assignment.layers) or None,
            input_bits=assignment.input_bits,
            depthwise="as-told",
            observer=assignment.observer,
            example_inputs=example_inputs,
            per_tensor=assignment.per_tensor,
        )
        return Prepared(student)

    def convert(self, model: nn.Module) -> nn.Module:
        """The student itself."""
        return model

    def audit(self, model: nn.Module) -> Audit:
        """See `zaq_plugin.ptq.audit`."""
        return audit(model)

    def why_not(self, assignment: Assignment) -> str | None:
        """Nothing is refused."""
        return None


SIMULATION = Simulation()
