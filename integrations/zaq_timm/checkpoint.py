"""A quantized network on disk: packed weights in one safetensors file, everything else in another.

`quantized.safetensors` holds codes, clips and breakpoints as `zaq_plugin.pwlq.save_quantized` packs
them; `rest.safetensors` the biases and the steps and zero points of the layers' inputs.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zaq_plugin.files import write_whole
from zaq_plugin.ptq import fold_batch_norm, simulate
from zaq_plugin.pwlq import PWLQTensor, UniformSpec, load_quantized, save_quantized
from zaq_timm.digits import IMAGE_SHAPE, DigitsSeparableNet

WEIGHTS_FILE = "quantized.safetensors"
REST_FILE = "rest.safetensors"
_FORMAT = "zaq_timm.rest/1"
_INPUT_KEYS = ("scale", "zero_point", "fake_quant_enabled", "observer_enabled")


def _rest(model: nn.Module) -> dict[str, Tensor]:
    """Biases, and what the input grids need: all state but the weights' and the observers'."""
    return {
        name: value.detach().contiguous()
        for name, value in model.state_dict().items()
        if name.endswith(".bias")
        or any(name.endswith(f".input_fake_quant.{key}") for key in _INPUT_KEYS)
    }


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    tensors: Mapping[str, PWLQTensor],
    activations: int,
) -> list[Path]:
    """Writes a simulated model's two files into a folder, and returns their paths.

    Args:
        folder: where to write; it must exist.
        model: the quantized model, as the host `simulated` made it.
        tensors: its quantized weights by layer name.
        activations: the width of the layers' inputs.
    """
    weights, rest = Path(folder) / WEIGHTS_FILE, Path(folder) / REST_FILE
    save_quantized(weights, tensors)
    metadata = {"format": _FORMAT, "activations": json.dumps(activations)}
    write_whole(rest, save(_rest(model), metadata))
    return [weights, rest]


def load_checkpoint(folder: str | os.PathLike[str]) -> nn.Module:
    """Returns the demo's network that `save_checkpoint` wrote, computing exactly what it computed.

    Its weights are the dequantized levels, and its layers' inputs are quantized.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is of another kind, or does not belong to this network.
    """
    tensors = load_quantized(Path(folder) / WEIGHTS_FILE)
    path = Path(folder) / REST_FILE
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(
                f"{path}: format {metadata.get('format')!r}, expected {_FORMAT!r}. "
                "Write it with: zaq-quantize demo."
            )
        rest = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    example = torch.zeros(1, *IMAGE_SHAPE)
    folded = fold_batch_norm(DigitsSeparableNet().eval(), (example,))
    activations = json.loads(metadata["activations"])
    model = simulate(
        folded, UniformSpec(), activations, depthwise="as-told", example_inputs=(example,)
    )
    named = model.named_modules()
    layers = {name: module for name, module in named if parametrize.is_parametrized(module)}
    if layers.keys() != tensors.keys() or _rest(model).keys() != rest.keys():
        raise ValueError(
            f"{os.fspath(folder)}: the checkpoint's layers are {', '.join(tensors)}; the digits "
            f"network's are {', '.join(layers)}. Was it written for another network?"
        )
    for name, layer in layers.items():
        parametrize.remove_parametrizations(layer, "weight")
        with torch.no_grad():
            layer.weight.copy_(tensors[name].dequantize())
    model.load_state_dict(rest, strict=False)
    return model.eval()
