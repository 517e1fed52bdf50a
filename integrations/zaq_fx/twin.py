"""The float teacher of a prepared student."""

from __future__ import annotations

from torch import fx, nn

from zaq_fx._compat import is_prepared
from zaq_fx.student import FXStudent


def twin(prepared: fx.GraphModule) -> nn.Module:
    """A deep copy of a prepared model that computes the float function.

    See `zaq_plugin.student.Student.twin`: every module and node keeps its name, so that a tap in
    one is the same tap in the other.

    Raises:
        ValueError: the model was not prepared.
    """
    if not is_prepared(prepared):
        raise ValueError(
            f"twin expects a model from prepare_fx or prepare_qat_fx; got {type(prepared).__name__}"
            " that was not prepared (or is already converted)."
        )
    return FXStudent(prepared).twin()
