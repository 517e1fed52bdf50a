"""Small models whose BatchNorms remember something, and students made of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.fake_quantize import ActivationFakeQuantize, PWLQPerChannelFakeQuantize
from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate
from zaq_plugin.pwlq import QuantSpec, UniformSpec
from zaq_plugin.student.fake_quantizers import set_switches


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class TinyResNet(nn.Module):
    """3 x 8 x 8 images to 4 classes: stem, a residual block, a strided layer, another block."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stage1 = nn.Sequential(Residual(width))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.bn_down = nn.BatchNorm2d(2 * width)
        self.stage2 = nn.Sequential(Residual(2 * width))
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        x = self.stage1(x)
        x = self.relu(self.bn_down(self.down(x)))
        x = self.stage2(x)
        return self.head(x.mean((2, 3)))


def settle(model: nn.Module, seed: int) -> nn.Module:
    """Let the BatchNorms see smooth random images, as training would have, and sharpen the head."""
    rng = torch.Generator().manual_seed(seed)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            coarse = torch.randn(32, 3, 4, 4, generator=rng)
            model(nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear"))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(4)
    return model.eval()


class QuantConv(nn.Conv2d):
    """A layer that holds its weight's fake-quantizer, as the hosts' do."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.weight_fake_quant = PWLQPerChannelFakeQuantize(UniformSpec(bits=3))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight_fake_quant(self.weight), self.bias)


class GraphNet(nn.Module):
    """Traced, it has the structure of a prepared graph: fake-quantizers as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.input_fq = ActivationFakeQuantize(bits=8)
        self.stem = QuantConv(3, 4, 3, padding=1)
        self.stem_fq = ActivationFakeQuantize(bits=4)
        self.conv1 = QuantConv(4, 4, 3, padding=1)
        self.mid_fq = ActivationFakeQuantize(bits=4)
        self.conv2 = QuantConv(4, 4, 3, padding=1)
        self.block_fq = ActivationFakeQuantize(bits=4)
        self.last = QuantConv(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(self.input_fq(x)))
        x = self.stem_fq(x)
        y = self.mid_fq(torch.relu(self.conv1(x)))
        x = torch.relu(self.conv2(y) + x)
        return self.last(self.block_fq(x)).mean((2, 3))


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return not isinstance(m, GraphNet)


def make_graph() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    net = GraphNet()
    graph = torch.fx.GraphModule(net, Leaves().trace(net))
    graph(torch.randn(8, 3, 8, 8))
    set_switches(graph, observe=False)
    return graph.eval()


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    def make(seed: int = 0, width: int = 6) -> nn.Module:
        torch.manual_seed(seed)
        return settle(TinyResNet(width), seed)

    return make


@pytest.fixture
def smooth_images() -> Callable[..., Tensor]:
    def make(count: int, seed: int = 7) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        coarse = torch.randn(count, 3, 4, 4, generator=rng)
        return nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")

    return make


@pytest.fixture
def make_student(
    smooth_images: Callable[..., Tensor],
) -> Callable[..., nn.Module]:
    def make(
        model: nn.Module, spec: QuantSpec | None = None, activations: int = 4, ready: bool = True
    ) -> nn.Module:
        student = simulate(
            fold_batch_norm(model),
            spec or UniformSpec(bits=3),
            activations,
            observer=MinMaxObserver,
        )
        if ready:
            calibrate(student, smooth_images(32).split(16))
        return student

    return make


@pytest.fixture
def graph_student() -> Callable[[], torch.fx.GraphModule]:
    return make_graph
