"""BatchNorm is folded where that is right, and stays where it is not; always the same function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import perturb
from pt2e_routes import finish, float_check, prepare, sqnr
from torch import Tensor, nn

from zaq_plugin.pwlq import UniformSpec, quantize
from zaq_pt2e import PWLQQuantizer, audit
from zaq_pt2e.graph import constant_value, layers

ELSEWHERE = "its BatchNorm stays float: the layer's output is used elsewhere, too"


class Skip(nn.Module):
    """A convolution whose output is added to what its BatchNorm makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.out(y + torch.relu(self.bn(y)))


class Feature(nn.Module):
    """A convolution whose output is returned beside what its BatchNorm makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        return y, torch.relu(self.bn(y))


class TwoNorms(nn.Module):
    """Two BatchNorms behind one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.a, self.b = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.out(torch.relu(self.a(y)) + torch.sigmoid(self.b(y)))


class LinearSkip(nn.Module):
    """A linear layer whose output goes past its BatchNorm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.out = nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x[:, :, :4, :4].flatten(1))
        return self.out(y - torch.relu(self.bn(y)))


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("kind", [Skip, Feature, TwoNorms, LinearSkip])
def test_a_norm_whose_layer_is_used_elsewhere_stays(
    kind: type[nn.Module], qat: bool, images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    model = perturb(kind())
    prepared = prepare(model, images, export, qat)
    assert float_check(prepared, model, images) > 100
    converted = finish(prepared, images)
    assert sqnr(model(images), converted(images)) > 22
    record = audit(converted)["stem"]
    assert record.quantized
    assert ELSEWHERE in record.reason


class Twice(nn.Module):
    """One convolution and one BatchNorm, called twice."""

    same = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bn(self.conv(x)) - 0.5 * self.bn(self.conv(x.flip(-1))))


class Levels(nn.Module):
    """A head that levels share, each with a BatchNorm of its own."""

    names = ("conv", "conv.call_2")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3), nn.AvgPool2d(2)
        self.bns = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bns[0](self.conv(x)), self.bns[1](self.conv(self.pool(x)))


class Siamese(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(3, 8, 3, bias=False)
        self.b.weight = self.a.weight
        self.bn_a, self.bn_b = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn_a(self.a(x))) + self.bn_b(self.b(x.flip(-1)))


class Chunks(nn.Module):
    """One convolution over slices of its input, one slice without BatchNorm."""

    names = ("conv", "conv.call_2")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = x.flatten(2).chunk(3, -1)
        return torch.cat([self.bn(self.conv(a)), self.conv(b), self.bn(self.conv(c))], -1)


class LinearHeads(nn.Module):
    """A linear layer that is called twice, with a BatchNorm for each call."""

    names = ("fc", "fc.call_2")

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.a, self.b = nn.Linear(27, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x[:, :, :3, :3].flatten(1), x[:, :, 3:6, 3:6].flatten(1)
        return torch.relu(self.a(self.fc(left))) - self.b(self.fc(right))


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("kind", [Twice, Levels, Siamese, Chunks, LinearHeads])
def test_a_weight_behind_several_norms_is_folded_for_each(
    kind: type[nn.Module], qat: bool, images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    model = perturb(kind())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = prepare(model, images, export, qat)
    assert float_check(prepared, model, images) > 100
    converted = finish(prepared, images)
    assert sqnr(model(images), converted(images)) > 22
    assert not [n for n in converted.graph.nodes if "batch_norm" in str(n.target)]
    found = audit(converted)
    assert not found.skipped
    names = {r.name for r in found.quantized}
    assert names >= set(getattr(kind, "names", ()))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
