"""NNCF's post-training quantization (https://github.com/openvinotoolkit/nncf).

plain: ``nncf.quantize`` with its defaults, bias correction off. best: all calibration images, the
``mixed`` preset (asymmetric activations) and fast bias correction, the most that the PyTorch
backend offers. Widths below eight exist in NNCF for the NPU target only; it computes them as
simulated quantization.
"""

from __future__ import annotations

from typing import Any

import nncf
import torch
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    OverflowFix,
    QuantizationParameters,
)

from benchmarks.peers.base import LAYERS, PeerRequest, PeerResult, layer_sizes


class Wrapped(torch.nn.Module):
    """A graph module inside a plain one: NNCF takes a bare one for another backend."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the model answers."""
        out: torch.Tensor = self.inner(x)
        return out


def quantize(request: PeerRequest) -> PeerResult:
    """``nncf.quantize`` with the request's widths."""
    best = request.recipe == "best"
    dataset = nncf.Dataset(list(request.calibration.split(request.batch)))
    narrow = min(request.weight_bits, request.activation_bits) < 8
    advanced = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.DISABLE,
        weights_quantization_params=QuantizationParameters(num_bits=request.weight_bits),
        activations_quantization_params=QuantizationParameters(num_bits=request.activation_bits),
        disable_bias_correction=not best,
    )
    options: dict[str, Any] = {
        "subset_size": len(request.calibration),
        "advanced_parameters": advanced,
        "target_device": nncf.TargetDevice.NPU if narrow else nncf.TargetDevice.CPU,
        "preset": nncf.QuantizationPreset.MIXED if best else nncf.QuantizationPreset.PERFORMANCE,
    }
    inner = Wrapped(request.model) if isinstance(request.model, torch.fx.GraphModule) else None
    model = request.model if inner is None else inner
    done = nncf.quantize(model.eval(), dataset, **options)
    sizes = layer_sizes(model, request.weight_bits)
    hooked = _weights_with_quantizers(done)
    hooked_sizes = {n: s for n, s in sizes.items() if n in hooked}
    return PeerResult(
        done.eval(),
        hooked_sizes,
        float_layers=[n for n in sizes if n not in hooked_sizes],
        notes=[
            "preset mixed, fast bias correction" if best else "preset performance",
            *(["target NPU: the only one with fewer than 8 bits"] if narrow else []),
        ],
        protocol={
            "first_last": "as all layers, the network's input too",
            "symmetry": "symmetric weights, activations " + ("asymmetric" if best else "symmetric"),
        },
    )


def _weights_with_quantizers(model: torch.nn.Module) -> set[str]:
    """Names of the layers whose weight passes through a quantizer: by what the hooks hang on.

    A graph module calls its layers past the modules that hold them, so that the hooks' names lack
    the layers': where there is one for every layer, that tells as much.
    """
    hooks = [name for name, _ in model.named_modules() if ".pre_hooks." in f".{name}."]
    layers = [name for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    ports = {hook.split("pre_hooks.")[1].split("__")[0] for hook in hooks if hook.endswith("__1")}
    if len(ports) == len(layers):
        return set(layers)
    return {name for name in layers if any(_same(port, name) for port in ports)}


def _same(port: str, layer: str) -> bool:
    """NNCF writes ``layer1/0/conv1/conv2d/0`` (or with colons) for the operator of a layer."""
    words = port.replace(":", "/").replace(".", "/")
    return words.startswith(layer.replace(".", "/") + "/")
