"""Hosts that convert the demo's network to int8 and run it, in place of simulating it.

Their levels are the simulation's, bit for bit; only activations between layers round differently.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, correct_bias
from zaq_plugin.pwlq import QuantSpec, quantize
from zaq_plugin.report import Audit
from zaq_plugin.student.host import Assignment, find_host
from zaq_timm.hosts import Host, Quantized


def through(name: str) -> Host:
    """The way through a host: prepared, calibrated, biases corrected, converted.

    Args:
        name: Of a host that is installed, see `zaq_plugin.student.host.host_names`.
    """

    def convert(
        model: nn.Module, weights: QuantSpec, activations: int, batches: Sequence[Tensor]
    ) -> Quantized:
        host = find_host(name)
        prepared = host.prepare(model, (batches[0],), Assignment(weights, activations)).model
        calibrate(prepared, batches)
        correct_bias(prepared, batches)
        converted = host.convert(prepared)
        return _quantized(model, weights, converted, host.audit(converted))

    return convert


def _quantized(model: nn.Module, spec: QuantSpec, converted: nn.Module, layers: Audit) -> Quantized:
    weights = dict(model.named_parameters())
    tensors = {
        record.name: quantize(weights[f"{record.name}.weight"].detach(), spec)
        for record in layers.quantized
    }
    return Quantized(converted, tensors, layers, {})


CONVERTED: dict[str, Host] = {name: through(name) for name in ("fx", "pt2e")}
"""Name to function; the command's `--host` offers what is here."""
