"""Hosts that convert the demo's network to int8 and run it, in place of simulating it.

Their levels are the simulation's, bit for bit; only activations between layers round differently.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zaq_plugin.pwlq import QuantSpec, quantize
from zaq_plugin.report import Audit
from zaq_timm.hosts import Host, Quantized


def on_fx(
    model: nn.Module, weights: QuantSpec, activations: int, batches: Sequence[Tensor]
) -> Quantized:
    """Through torch.ao's FX graph mode: the stock int8 kernels of the machine's engine."""
    import zaq_fx

    with warnings.catch_warnings():
        # That FX is on its way out is for those who choose it in their own code.
        warnings.simplefilter("ignore", zaq_fx.HostNote)
        prepared = zaq_fx.prepare(model, (batches[0],), weights, activations)
    converted = zaq_fx.convert(zaq_fx.calibrate(prepared, batches))
    return _quantized(model, weights, converted, zaq_fx.audit(converted))


def on_pt2e(
    model: nn.Module, weights: QuantSpec, activations: int, batches: Sequence[Tensor]
) -> Quantized:
    """Through torchao's PT2E: the converted graph, ready to be lowered to a compiler's kernels."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    import zaq_pt2e

    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(model, (batches[0],), dynamic_shapes=shapes)
    quantizer = zaq_pt2e.PWLQQuantizer(weights, activations)
    prepared = zaq_pt2e.calibrate(prepare_pt2e(program.module(), quantizer), batches)
    converted = convert_pt2e(prepared)
    return _quantized(model, weights, converted, zaq_pt2e.audit(converted))


def _quantized(model: nn.Module, spec: QuantSpec, converted: nn.Module, layers: Audit) -> Quantized:
    weights = dict(model.named_parameters())
    tensors = {
        record.name: quantize(weights[f"{record.name}.weight"].detach(), spec)
        for record in layers.quantized
    }
    return Quantized(converted, tensors, layers, {})


CONVERTED: dict[str, Host] = {"fx": on_fx, "pt2e": on_pt2e}
"""Name to function; the command's `--host` offers what is here."""
