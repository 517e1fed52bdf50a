"""Small networks that the converter or its kernels refused, and what it merges."""

from pathlib import Path

import pytest
import torch
from device_tools import noise_of
from torch import Tensor, nn


class Gated(nn.Module):
    """Squeeze and excitation, as in EfficientNets, or attention over channels."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.inner, self.gate = nn.Conv2d(8, 8, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        inner = self.inner(x.mean((2, 3), keepdim=True))
        gates = {"sigmoid": inner.sigmoid(), "softmax": inner.softmax(1), "tanh": inner.tanh()}
        return self.last(x * gates[self.gate])


@pytest.mark.parametrize("gate", ["sigmoid", "softmax", "tanh"])
def test_gates_are_on_the_grids_that_the_kernels_prescribe(gate: str, tmp_path: Path) -> None:
    import zaq_litert
    from zaq_litert.reading import interpreter_of, runner

    torch.manual_seed(0)
    model, images = Gated(gate).eval(), torch.randn(8, 3, 12, 12)
    made = zaq_litert.export(
        model, (images[:1],), tmp_path / "net.tflite", calibration=[images], method="pwlq"
    )
    assert zaq_litert.verify(made.path, made.model, images).require().weights == 3
    grids = {place["quantization"] for place in interpreter_of(made.path).get_tensor_details()}
    assert {"tanh": (1 / 128, 0)}.get(gate, (1 / 256, -128)) in grids  # LiteRT's specification
    assert noise_of(runner(made.path), model, images) < -20  # four MAC bits


class SplitGate(nn.Module):
    """A gate and what it gates out of one sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.first(x).sigmoid().chunk(2, 1)
        return self.last(values.flatten(2).sin().unflatten(2, (10, 10)) * gate)


class Attention(nn.Module):
    """Over pixels, in three dimensions, with a shape of four behind the product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 24, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.first(x).split([8, 8, 8], 1)
        query, key, value = (part.flatten(2) for part in parts)
        attention = (query.transpose(-2, -1) * 0.25 @ key).softmax(-1)
        mixed = (value @ attention.transpose(-2, -1)).view(x.shape[0], 8, 10, 10)
        return self.last(torch.cat([mixed, mixed + parts[0]], 1).relu())


class DroppedAndJoined(nn.Module):
    """A layer's output, dropped out in training, beside what has a grid of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.inner, self.norm, self.drop = nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x).flatten(2).transpose(1, 2))
        return self.last(torch.cat([self.drop(self.inner(x[:, :1])), x[:, 1:]], 1))


class CastAndJoined(nn.Module):
    """Casts for half precision that change nothing in float32, as around rotary embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(16, 4, 1)
        self.inner = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        turned = (x + self.inner(x)).to(torch.float32).type_as(x)
        return self.last(torch.cat([3 * x, turned], 1))


class Silent(nn.Module):
    """A layer of weights zero, as the heads of mixers are before training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.inner = nn.Conv2d(8, 8, 1)
        self.inner.weight.data.zero_()
        self.inner.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.inner(x).relu())


class SameTwice(nn.Module):
    """Layers of equal weights on one constant, as relative positions in ConViT before training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.inner, self.other = nn.Linear(3, 8), nn.Linear(3, 8)
        self.other.load_state_dict(self.inner.state_dict())
        self.places, self.copy = (nn.Buffer(torch.arange(12.0).view(1, 4, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.inner(self.places).softmax(1).sum(1).view(1, 8, 1, 1)
        return self.last(x.relu() * self.other(self.copy).softmax(1).sum(1).view(1, 8, 1, 1))


class UnitLength(nn.Module):
    """Vectors of length one, counted from both ends, as in attention by cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x).flatten(2).transpose(1, 2).chunk(2, -1)
        first = nn.functional.normalize(first + 1, dim=-1)
        return self.last(first * nn.functional.normalize(second, dim=2) + first)


class PaddedWithOne(nn.Module):
    """By far more than the values, as for the sums that linear attention divides by."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.inner = nn.Conv2d(8, 8, 1)
        self.first.weight.data.mul_(0.1)
        self.inner.weight.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(self.first(x), (1, 0), value=2.0).exp()
        return self.last(nn.functional.pad(self.inner(x), (0, 2, 1, 0), value=-2.0))


class StateSpace(nn.Module):
    """Parts of a flattened output, with ranges of their own, as in EfficientViM."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv1d(8, 8, 1)
        self.inner, self.rate = nn.Conv1d(8, 12, 1), nn.Parameter(16 * torch.rand(1, 4, 1))
        self.mixed = nn.Conv2d(12, 12, 3, 1, 1, groups=12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).flatten(2)
        mixed = self.mixed(self.inner(x).reshape(x.shape[0], -1, 10, 10)).flatten(2)
        values, _, steps = mixed.split([4, 4, 4], 1)
        states = x @ ((steps + self.rate).softmax(-1) * values).transpose(-2, -1)
        return self.last(states)


class UnitPixels(nn.Module):
    """Channels of every pixel, of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.normalize(self.first(x), dim=1))


class PaddedTwice(nn.Module):
    """One value in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(nn.functional.pad(x, (0, 0, 2, 0)))
        return y + self.last(nn.functional.pad(x, (0, 0, 1, 1), value=1.0))


class Upsampled(nn.Module):
    """As decoders of segmentation networks do it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1)
        self.up, self.other = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 4, 4, 2, 1)
        self.up.bias.data.uniform_(-1, 1)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.other(self.up(self.first(x).relu()).relu()))


class PooledAndJoined(nn.Module):
    """What a convolution reads, padded alike and pooled beside larger values, as in ESPNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 2, 1)
        self.last, self.pool = nn.Conv2d(16, 8, 1), nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        return y + self.last(torch.cat([30 * y, self.pool(x)], 1))


class PooledTwice(nn.Module):
    """The input, pooled and pooled again, beside convolutions; one of them stayed float."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(11, 8, 3, 2, 1)
        self.last, self.pool = nn.Conv2d(11, 8, 1), nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.pool(x)
        y = torch.cat([10 * self.first(x).relu(), once], 1)
        return self.last(torch.cat([20 * self.second(y), self.pool(once)], 1))


class Sequence1d(nn.Module):
    """Convolutions of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 5, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(2)).relu())


@pytest.mark.parametrize(
    "network",
    [
        *(SplitGate, Attention, DroppedAndJoined, CastAndJoined),
        *(Silent, SameTwice, UnitLength, PaddedWithOne),
        *(UnitPixels, PaddedTwice, Upsampled, PooledAndJoined, PooledTwice, Sequence1d),
        StateSpace,
    ],
)
def test_grids_follow_values_through_shapes_and_joins(
    network: type[nn.Module], tmp_path: Path
) -> None:
    """Each was refused by the converter or by the kernels."""
    import zaq_litert
    from zaq_litert.reading import runner

    torch.manual_seed(0)
    model, images = network().eval(), torch.randn(8, 3, 12, 12)
    made = zaq_litert.export(
        model, (images[:1],), tmp_path / "net.tflite", calibration=[images], method="pwlq"
    )
    kinds = nn.Conv2d | nn.Linear | nn.ConvTranspose2d | nn.Conv1d
    layers = sum(isinstance(m, kinds) for m in model.modules())
    assert zaq_litert.verify(made.path, made.model, images).require().weights == layers
    assert noise_of(runner(made.path), model, images) < -20  # four MAC bits


class Apart(nn.Module):
    """Equal weights, other inputs; the same input, other weights or other strides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.second.load_state_dict(self.first.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x)) + self.third(x)
        strided = nn.functional.conv2d(x, self.first.weight, self.first.bias, 2)
        return y.mean() + strided + nn.functional.conv2d(x, self.third.weight, None)[:, :, ::2, ::2]


def test_layers_that_compute_the_same_are_told_from_those_that_do_not() -> None:
    import zaq_litert
    from zaq_litert.lowering import merged_layers

    torch.manual_seed(0)
    images = torch.randn(8, 3, 12, 12)
    for model, count in ((SameTwice().eval(), 3), (Apart().eval(), 5)):
        prepared = zaq_litert.prepare(model, (images[:1],))
        prepared(images)
        assert merged_layers(zaq_litert.convert(prepared)) == count
