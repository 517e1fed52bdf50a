"""torch.ao's FX mode as a host."""

from __future__ import annotations

import warnings
from typing import Any

from torch import fx, nn

from zaq_fx._compat import HostNote
from zaq_fx.audit import audit
from zaq_fx.flow import convert, prepare
from zaq_plugin.report import Audit
from zaq_plugin.student.host import Assignment, Prepared, why_not_int8


class FX:
    """prepare_fx or prepare_qat_fx, and convert_fx."""

    name = "fx"
    kernels = "int8"

    def prepare(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        assignment: Assignment,
        *,
        train: bool = False,
    ) -> Prepared:
        """See `zaq_plugin.student.host.Host`."""
        activations: Any = assignment.activations
        own: dict[Any, Any] = assignment.within(dict(model.named_modules()))
        with warnings.catch_warnings():
            # That FX is on its way out is for those who choose it in their own code.
            warnings.simplefilter("ignore", HostNote)
            warnings.simplefilter("ignore", DeprecationWarning)
            prepared = prepare(
                model,
                example_inputs,
                assignment.weights,
                activations,
                qat=train,
                overrides=own,
                input_bits=assignment.input_bits or activations,
                observer=assignment.observer,
                check=False,  # who calls a host does that
            )
        return Prepared(prepared.eval())

    def convert(self, model: nn.Module) -> nn.Module:
        """The lowered model; activations of fewer than 8 bits are clamped to their integers."""
        assert isinstance(model, fx.GraphModule)
        return convert(model)

    def audit(self, model: nn.Module) -> Audit:
        """See `zaq_fx.audit`."""
        return audit(model)

    def why_not(self, assignment: Assignment) -> str | None:
        """One grid a weight, float activations and simulated formats are not for int8 kernels."""
        reason = why_not_int8(assignment, self.name)
        if reason is None and assignment.activations is None:
            return "fx: int8 kernels need quantized activations; give 2 to 8 bits"
        return reason


HOST = FX()
