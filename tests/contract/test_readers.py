"""Functions that read a layer's tensors, and layers that are given one sample, in every host."""

from __future__ import annotations

import pytest
import torch
from hosts import Way, every_host, sqnr
from networks import perturb
from torch import Tensor, nn
from torch.nn import functional

from zaq_plugin.ptq import calibrate, correct_bias
from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.student import student_of, twin

SEVEN = UniformSpec(7, "symmetric")


class ReadConvolution(nn.Module):
    """Weight, bias, and the tensors of the BatchNorm behind are read by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = self.conv.weight.abs().mean((1, 2, 3)) + self.conv.bias
        shift = self.norm.weight * self.norm.running_mean  # type: ignore[operator]
        y = self.norm(self.conv(x)) * size[:, None, None] + shift[:, None, None]
        return self.head(functional.relu(y))


class ConvolvedTwice(nn.Module):
    """A convolution's weight in the hands of functions: alone, and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.conv(x)))
        back = functional.conv_transpose2d(y, self.conv.weight)
        return functional.conv2d(back, self.conv.weight, self.conv.bias)


class ReadLinear(nn.Module):
    """A linear layer's weight, transposed, and in a matrix product; slopes of a PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 8), nn.PReLU(8), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x)) * self.act.weight
        x = functional.linear(y, self.first.weight.t()) + torch.matmul(y, self.first.weight)
        return self.last(x)


class OfOneVector(nn.Module):
    """A learned vector goes through linear layers, one of them a function."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.matrix = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(8, 6))
        self.scale, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.scale(self.vector) + functional.linear(self.vector, self.matrix)
        return self.last(functional.relu(x * gate))


class OneImage(nn.Module):
    """Without a batch axis from beginning to end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.conv(x)).mean((1, 2)))


class GivenABatchInside(nn.Module):
    """One image, to which the model itself gives a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.conv(x.unsqueeze(0)))).squeeze(0)


SHAPES = {
    ReadConvolution: (8, 3, 9, 9),
    ConvolvedTwice: (8, 3, 9, 9),
    ReadLinear: (16, 6),
    OfOneVector: (16, 8),
    OneImage: (3, 9, 9),
    GivenABatchInside: (3, 9, 9),
}


@every_host
@pytest.mark.parametrize("kind", SHAPES, ids=lambda kind: kind.__name__)
def test_right_with_and_without_quantizers(way: Way, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = perturb(kind()).eval()
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(SHAPES[kind], generator=generator) for _ in range(3)]
    with torch.no_grad():
        expected = model(batches[0].clone())
        student = way.prepare(model, (batches[0],), SEVEN, 7)
        teacher = twin(student)
        assert sqnr(expected, student_of(teacher).run(((batches[0].clone(),), {}))) > 100
        calibrate(student, batches)
        correct_bias(student, batches)
        output = way.convert(student)(batches[0].clone())
    assert sqnr(expected, output) > 22
