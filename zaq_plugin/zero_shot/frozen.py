"""A model that is only asked: gradients pass through it, and it does not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from zaq_plugin.zero_shot.twins import to_evaluation


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients to the parameters, both put back afterwards."""
    trained = [p for p in model.parameters() if p.requires_grad]
    modes = {m: m.training for m in model.modules()}
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        to_evaluation(model)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
