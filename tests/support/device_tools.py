"""What the tests of all integrations for devices share; a tool is its integration's module."""

import copy
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Net, perturb
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_plugin import archive
from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, quantize

Runner = Callable[[tuple[Tensor, ...]], list[Tensor]]
"""Runs a file: from inputs to outputs."""

PAGES = Path(__file__).parents[2] / "docs"


def skip_without(tool: str, why: str, items: list[pytest.Item], here: Path) -> None:
    """Marks the tests of a folder whose tool is not installed."""
    if find_spec(tool) is None:
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(pytest.mark.skip(reason=why))


def network() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Net(10))


def eight_images() -> Tensor:
    return torch.randn(8, 3, 17, 17, generator=torch.Generator().manual_seed(7))


def calibrated(tool: Any, net: nn.Module, images: Tensor) -> GraphModule:
    """Converted by the host, not rounded anew: its weights have the format's own levels."""
    import zaq_pt2e

    prepared = tool.prepare(net, (images[:2],))
    zaq_pt2e.calibrate(prepared, [images])
    return tool.convert(prepared)


def check_integers_and_scales(file: Any, net: nn.Module, images: Tensor) -> None:
    """Against `quantize` of the folded float weights, which has never seen a graph.

    Args:
        file: What the integration's reader found.
        net: The float network.
        images: To fold with.
    """
    there = {(c.tobytes(), s.tobytes()) for c, s in file.weights}
    layers = {
        name: module
        for name, module in fold_batch_norm(net, (images,)).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert len(layers) == len(there) == file.integer_layers == 5
    for name, layer in layers.items():
        packed = quantize(layer.weight.detach(), PWLQSpec())
        codes = packed.integer_weight().numpy()
        depthwise = codes.ndim == 4 and codes.shape[1] == 1
        if codes.ndim == 4:  # channels are last
            codes = codes.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
        key = (np.ascontiguousarray(codes).tobytes(), packed.scale.numpy().tobytes())
        assert key in there, name


def with_another_weight(model: nn.Module) -> nn.Module:
    """A copy whose layer block.conv1 has one integer that differs by one."""
    other = copy.deepcopy(model)
    weights = [w for w in other.state_dict().values() if w.dtype == torch.int8]
    (weight,) = [w for w in weights if w.shape == (16, 8, 3, 3)]
    weight[0, 0, 0, 0] += 1 if weight[0, 0, 0, 0] < 127 else -1
    return other


def check_archive(path: Path, converted: GraphModule, folder: Path) -> None:
    """Every int8 weight of the graph, and not a byte more, is coded, and the file comes back."""
    data, back = path.read_bytes(), folder / f"back{path.suffix}"
    packed = archive.pack(path, folder / "net.zaq")
    tensors = converted.state_dict().values()
    weights = [w for w in tensors if w.ndim > 1 and not w.is_floating_point()]
    assert packed.coded + packed.integers == sum(w.numel() for w in weights)
    assert packed.coded > 0.9 * packed.integers
    assert packed.bytes < packed.zipped_bytes < packed.file_bytes == len(data)
    assert archive.unpack(packed.path, back) == len(data)
    assert back.read_bytes() == data
    damaged = folder / f"damaged{path.suffix}"
    damaged.write_bytes(data[:2000])
    with pytest.raises(ValueError, match=rf"damaged{path.suffix}: "):
        archive.pack(damaged)
    assert not (folder / f"damaged{path.suffix}.zaq").exists()


def run_page(name: str) -> None:
    """The one block of Python on a page of the guide, in the folder at hand."""
    text = (PAGES / name).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, name, "exec"), {})


@torch.no_grad()
def noise_of(run: Runner, model: nn.Module, images: Tensor) -> float:
    """What a file of one sample adds to the float model's outputs, in dB of them."""
    expected = model(images)
    answers = torch.cat([run((image[None],))[0] for image in images])
    return float(10 * torch.log10((answers - expected).square().sum() / expected.square().sum()))
