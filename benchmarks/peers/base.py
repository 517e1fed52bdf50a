"""What an adapter is asked for and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class PeerRequest:
    """A float model and how it is to be quantized.

    Attributes:
        model: In evaluation mode, traceable by ``torch.fx``; the adapter may change it.
        example: A batch of two images.
        calibration: (n, C, H, W) images that calibrate.
        weight_bits, activation_bits: Of all layers; the network's input is to have 8 bits where
            the tool lets one say so.
        recipe: ``plain`` or ``best``.
        seed: Of everything drawn.
        effort: Multiplies training steps.
        batch: Images at a time.
    """

    model: nn.Module
    example: Tensor
    calibration: Tensor
    weight_bits: int
    activation_bits: int
    recipe: str
    seed: int = 0
    effort: float = 1.0
    batch: int = 32


@dataclass
class PeerResult:
    """A quantized model.

    Attributes:
        model: What runs: simulated quantization, unless the adapter says otherwise.
        weights: Name to (number of weights, output channels, bits) of each quantized layer.
        asymmetric: Whether weights have zero points.
        float_layers: Layers that stayed float.
        notes: The recipe in words, and what a reader should know.
        protocol: How the tool places its quantizers, in the words of the tables.
    """

    model: nn.Module
    weights: dict[str, tuple[int, int, int]]
    asymmetric: bool = False
    float_layers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)


PROTOCOL: dict[str, Any] = {
    "first_last": "as all layers; the network's input at 8 bits",
    "residual_adds": "as the tool places its quantizers",
    "symmetry": "symmetric weights, asymmetric activations",
    "granularity": "weights per output channel, activations per tensor",
}
"""What an adapter changes where its tool differs."""

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def layer_sizes(model: nn.Module, bits: int) -> dict[str, tuple[int, int, int]]:
    """Number of weights, output channels and bits of every convolution and linear layer."""
    sizes = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS):
            axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            sizes[name] = layer.weight.numel(), layer.weight.shape[axis], bits
    return sizes


def stored_bytes(weights: dict[str, tuple[int, int, int]], asymmetric: bool) -> int:
    """Dense codes, and a scale (and zero point) of four bytes each for every channel."""
    extra = 8 if asymmetric else 4
    return sum(
        -(-numel * bits // 8) + extra * channels for numel, channels, bits in weights.values()
    )
