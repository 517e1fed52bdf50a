"""What the demo measures of a quantized network."""

import torch
from torch import Tensor, nn

from zaq_timm.hosts import Quantized


def percent(hits: Tensor) -> float:
    """The share of true values, in percent."""
    return 100.0 * int(hits.sum()) / hits.numel()


def sqnr(model: nn.Module, result: Quantized) -> float:
    """Signal to quantization noise of all quantized weights together, in dB."""
    signal = noise = 0.0
    for name, tensor in result.tensors.items():
        weight = model.get_submodule(name).weight.detach().double()  # type: ignore[operator]
        signal += weight.square().sum().item()
        noise += (tensor.dequantize().double() - weight).square().sum().item()
    return 10 * torch.tensor(signal / noise, dtype=torch.float64).log10().item()


def float_bytes(model: nn.Module, result: Quantized) -> int:
    """Bytes of the parameters that stay float: biases (skipped weights are in the audit)."""
    recorded = {f"{record.name}.weight" for record in result.layers}
    return 4 * sum(p.numel() for name, p in model.named_parameters() if name not in recorded)
