"""Which modules of torch are convolutions and linear layers, where their channels are; hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def out_features(layer: nn.Module) -> int:
    """Number of output channels of a convolution or linear module."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore


def in_features(layer: nn.Module) -> int:
    """Number of input channels of a convolution or linear module."""
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore


def weight_of(module: object) -> Tensor | None:
    """The tensor that a module calls its weight; None where there is none."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def channel_axis(layer: nn.Module) -> int:
    """Axis of the output channels in a layer's weight."""
    return 1 if isinstance(layer, TRANSPOSED) else 0


def groups_of(layer: nn.Module) -> int:
    """Groups of a convolution; 1 of anything else."""
    return layer.groups if isinstance(layer, _ConvNd) else 1


def has_own_forward(kind: type[nn.Module]) -> bool:
    """Whether a kind of layer computes its product in a way of its own, not as torch's do."""
    return all(kind.forward is not base.forward for base in LAYERS)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether every input channel has its own filters."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that were put on modules: they are taken off at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
