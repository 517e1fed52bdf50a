"""Bias correction on real activations, in place of NNCF's on their means.

NNCF runs a layer on an image that is constant in each channel, which knows nothing of borders; in
networks with many padded convolutions that costs more than it mends. Here the mean error
``E[(W^ - W) x]`` is taken over what the quantized model itself feeds the layer, all layers before
it corrected (Nagel et al., ICCV 2019, section 4.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zaq_nncf._compat import DisableTorchFunction, hooks_of
from zaq_nncf.activations import call
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer
from zaq_plugin.layers import LAYERS
from zaq_plugin.student.modes import evaluating

IMAGES = 128
"""Images that correct biases; all of them go through the model at once."""


def correct_bias(model: nn.Module, batches: Iterable[Any]) -> list[str]:
    """Take the mean output error of every PWLQ layer out of its bias, in place.

    Layers without a bias, and layers that run more than once, stay as they are.

    Args:
        model: From ``nncf.quantize`` with PWLQ registered, its activations calibrated.
        batches: Inputs as NNCF's data set gives them; the first `IMAGES` images are used.

    Returns:
        Names of the corrected layers, in order of execution.

    Raises:
        ValueError: an output error is not finite.
    """
    batch = _merged(batches)
    layers = _layers(model)
    count: Counter[str] = Counter()
    handles = [
        layer.register_forward_pre_hook(lambda m, args, name=name: count.update([name]))
        for name, (layer, _) in layers.items()
    ]
    done: list[str] = []
    try:
        with evaluating(model):
            call(model, batch)
            for handle in handles:
                handle.remove()
            handles = []
            for name, (layer, quantizer) in layers.items():
                if count[name] == 1:
                    handles.append(_watch(name, layer, quantizer, done))
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return done


def _layers(model: nn.Module) -> dict[str, tuple[nn.Module, PWLQWeightQuantizer]]:
    found: dict[str, tuple[nn.Module, PWLQWeightQuantizer]] = {}
    for _, quantizer in hooks_of(model).named_hooks():
        if not isinstance(quantizer, PWLQWeightQuantizer):
            continue
        name = quantizer.weight.rpartition(".")[0]
        layer = model.get_submodule(name)
        if isinstance(layer, LAYERS) and isinstance(layer.bias, nn.Parameter):
            found[name] = (layer, quantizer)
    return found


def _watch(name: str, layer: nn.Module, quantizer: PWLQWeightQuantizer, done: list[str]) -> Any:
    def correct(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # NNCF counts and names every operator that it sees; these are none of the model's.
        with DisableTorchFunction():
            error = mean_output_error(layer, quantizer, args[0])
            if not bool(error.isfinite().all()):
                raise ValueError(
                    f"layer {name!r}: the mean output error is not finite; check the calibration "
                    "data for NaN or infinity."
                )
            bias: Any = layer.bias
            bias.sub_(error.to(bias.dtype))
        done.append(name)

    return layer.register_forward_pre_hook(correct)


def mean_output_error(layer: nn.Module, quantizer: PWLQWeightQuantizer, x: Tensor) -> Tensor:
    """``E[(W^ - W) x]`` per output channel, over samples and positions, in float64.

    Args:
        layer: A convolution or linear layer with a bias.
        quantizer: Of its weight.
        x: Its input, ``(n, channels, *size)``, or ``(*, features)`` for a linear layer.

    Returns:
        (output channels,).
    """
    axes = tuple(range(x.dim() - 1)) if isinstance(layer, nn.Linear) else (0,)
    mean = x.mean(axes, dtype=torch.float64).unsqueeze(0)  # the layer is linear in x
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    error = quantizer.grid(weight.detach()).double() - weight.detach().double()
    try:
        layer._parameters["weight"] = nn.Parameter(error, requires_grad=False)
        layer._parameters["bias"] = None
        output: Tensor = type(layer).forward(layer, mean)
    finally:
        layer._parameters["weight"], layer._parameters["bias"] = weight, bias
    if isinstance(layer, nn.Linear):
        return output.reshape(-1, output.shape[-1]).mean(0)
    return output.flatten(2).mean((0, 2))


def _merged(batches: Iterable[Any]) -> Any:
    """The first images as one batch; the first batch where they are no plain tensors."""
    kept: list[Tensor] = []
    for batch in batches:
        if not isinstance(batch, Tensor) or (kept and batch.shape[1:] != kept[0].shape[1:]):
            return torch.cat(kept)[:IMAGES] if kept else batch
        kept.append(batch)
        if sum(map(len, kept)) >= IMAGES:
            break
    return torch.cat(kept)[:IMAGES]
