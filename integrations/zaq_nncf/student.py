"""What zero-shot fine-tuning has to know of NNCF's students, and their float teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from zaq_plugin.zero_shot.hosts import register_host

from zaq_nncf._compat import decode_hook_name, hooks_of, is_wrapped, run_inside
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer
from zaq_plugin.zero_shot import twins


class NNCFStudent:
    """NNCF keeps all quantizers under the root and runs them in the root's forward pass only."""

    def recognises(self, model: nn.Module) -> bool:
        """Whether NNCF wrapped the model."""
        return is_wrapped(model)

    def place_of(self, model: nn.Module, quantizer: str) -> str:
        """Name of the parameter behind the fake-quantizer ``grid`` of one of our quantizers."""
        owner: Any = model.get_submodule(quantizer.rpartition(".")[0])
        return str(owner.weight)

    def run(self, model: nn.Module, name: str, x: Tensor) -> Tensor:
        """Run a submodule with NNCF's hooks."""
        return run_inside(model, name, x)

    def quantizers_inside(self, model: nn.Module, name: str) -> list[nn.Module]:
        """The activation quantizers on a submodule's operators."""
        prefix = name.replace(".", "/") + "/"
        found: list[nn.Module] = []
        for hook, module in hooks_of(model).named_hooks(remove_duplicate=False):
            inside = decode_hook_name(hook)[1].startswith(prefix)
            if inside and isinstance(module, ActivationQuantizer) and module not in found:
                found.append(module)
        return found


register_host(NNCFStudent())


def twin(student: nn.Module) -> nn.Module:
    """The float teacher: a deep copy that computes what the float model computed.

    Quantizers are off, NNCF's own ones too, and biases are as they were before correction. Every
    module has the name that it has in the student. Take it before the student is trained.

    Raises:
        ValueError: the model holds no quantizer of ours.
    """
    if not any(isinstance(m, PWLQWeightQuantizer) for _, m in hooks_of(student).named_hooks()):
        raise ValueError(
            f"twin: this {type(student).__name__} holds no PWLQ weights; pass what "
            "zaq_nncf.quantize returned, before it is stripped."
        )
    return twins.twin(student)
