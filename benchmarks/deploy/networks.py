"""The networks that `benchmarks.deploy` ships, and the runtimes that run them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.data.tasks import load_task
from zaq_onnx.runtimes import openvino_compiled, ort_session, run_openvino, run_ort
from zaq_plugin import PWLQSpec
from zaq_plugin.ptq import calibrate, correct_bias
from zaq_plugin.student.host import Assignment, find_host

TIMM = ("resnet18", "resnet50", "mobilenetv2_100", "efficientnet_b0", "vit_tiny_patch16_224")
DATA = ("cifar10", "imagenet")
BITS = {4: 3, 5: 4}
"""MAC bits by stored bits."""

OPSET = 21
Facts = dict[str, Any]


@dataclass
class Network:
    """A network to ship.

    Attributes:
        name: Of the row.
        model: Float.
        batches: Images for ranges.
        images: Images to measure accuracy on, and their classes; None for random weights.
        labels: See above.
    """

    name: str
    model: nn.Module
    batches: list[Tensor]
    images: Tensor | None = None
    labels: Tensor | None = None


def network(name: str, data: Path | None) -> Network:
    """A network by name."""
    generator = torch.Generator().manual_seed(0)
    if name in DATA:
        assert data is not None
        task = load_task(name, data)
        size = task.images.shape[-1]
        ranges = task.train
        if ranges is None:  # no image may calibrate: smooth noise with the images' contrast
            small = torch.randn(32, 3, 14, 14, generator=generator)
            ranges = nn.functional.interpolate(small, (size, size), mode="bilinear") * 0.8
        batches = list(ranges[torch.randperm(len(ranges), generator=generator)[:64]].split(8))
        return Network(name, task.model, batches, task.images, task.labels)
    torch.manual_seed(0)
    options = {"zero_init_last": False} if name.startswith("resnet") else {}
    model = timm.create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            # Or convolutions have no bias, as those of trained networks do, and exporters drop it.
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
            nn.init.normal_(module.running_mean, 0, 0.1, generator=generator)
    return Network(name, model, list(torch.randn(8, 3, 224, 224, generator=generator).split(4)))


def convert(net: Network, mac_bits: int) -> nn.Module:
    """By torchao, with PWLQ weights and 8-bit activations."""
    host = find_host("pt2e")
    student = host.prepare(net.model, (net.batches[0],), Assignment(PWLQSpec(bits=mac_bits))).model
    calibrate(student, net.batches)
    correct_bias(student, net.batches)
    return host.convert(student)


@dataclass(frozen=True)
class Runtime:
    """How to load and to run a file.

    Attributes:
        name: Of the columns.
        load: From a file.
        run: On inputs.
    """

    name: str
    load: Callable[..., Any]
    run: Callable[..., Any]


RUNTIMES = (
    Runtime("ort", ort_session, run_ort),
    Runtime("openvino", openvino_compiled, run_openvino),
)


def facts_of(folder: Path) -> Facts | None:
    """What is known of a network that was prepared."""
    path = folder / "facts.json"
    facts: Facts | None = json.loads(path.read_text()) if path.exists() else None
    return facts
