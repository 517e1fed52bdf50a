"""Second moments of a layer's inputs against the layer itself: E[(W x)^2] = W E[x x^T] W^T."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.ptq import input_moments, simulate
from zaq_plugin.ptq.input_moments import InputMoments, NoProductError, why_no_patches
from zaq_plugin.pwlq import PWLQSpec


class Padded(nn.Conv2d):
    """Pads its input at the right and at the bottom first."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (0, 1, 0, 2)))


class Shifted(nn.Linear):
    """Multiplies its input less one."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input - 1, self.weight, bias=self.bias)


class Named(nn.Conv1d):
    """Calls the operator with names, and with an integer for what others give as tuples."""

    def forward(self, input: Tensor) -> Tensor:
        x, w = input.flip(2), self.weight
        return nn.functional.conv1d(weight=w, input=x, bias=self.bias, stride=2, groups=2)


class Written(nn.Linear):
    """The linear map in other operators."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", input, self.weight) + self.bias


class Rescaled(nn.Conv2d):
    """Multiplies by something else than its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.conv2d(input, 2 * self.weight, self.bias)


CASES = {
    "linear": (nn.Linear(7, 5), (4, 7)),
    "linear, tokens": (nn.Linear(7, 5), (4, 3, 7)),
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), (3, 4, 7, 6)),
    "stride, dilation": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=2), (3, 4, 9, 8)),
    "groups": (nn.Conv2d(4, 6, 3, padding=(1, 0), groups=2), (3, 4, 7, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (3, 4, 7, 6)),
    "same": (nn.Conv2d(4, 6, (2, 3), padding="same"), (3, 4, 7, 6)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (3, 4, 7, 6)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (3, 4, 7, 6)),
    "reflect": (nn.Conv1d(4, 6, 5, padding=2, padding_mode="reflect"), (3, 4, 9)),
    "one dimension": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    "own forward, padding": (Padded(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 8, 8)),
    "own forward, linear": (Shifted(7, 5), (4, 3, 7)),
    "own forward, einsum": (Written(7, 5), (4, 3, 7)),
    "own forward, names": (Named(4, 6, 3, groups=2), (3, 4, 9)),
    "three dimensions": (nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1)), (2, 4, 3, 4, 5)),
}


def mean_square(layer: Any, moments: Tensor) -> Tensor:
    """W E[x x^T] W^T of each output channel."""
    rows = layer.weight.detach().double().flatten(1).unflatten(0, (moments.shape[0], -1))
    return ((rows @ moments) * rows).sum(2).flatten()


def output_square(layer: Any, x: Tensor) -> Tensor:
    """The same from the layer's own arithmetic."""
    with torch.no_grad():
        out = layer.double()(x.double())
    axis = out.dim() - 1 if isinstance(layer, nn.Linear) else 1
    offset = layer.bias.detach().double().view([-1 if i == axis else 1 for i in range(out.dim())])
    return (out - offset).square().transpose(0, axis).flatten(1).mean(1)


@pytest.mark.parametrize("name", CASES)
def test_moments_tell_the_power_of_the_output(name: str) -> None:
    layer, shape = CASES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    moments = InputMoments(layer.double(), torch.Generator())
    first, rest = x.double()[:1], x.double()[1:]
    moments.add(first)
    moments.add(rest)
    assert torch.allclose(mean_square(layer, moments.mean()), output_square(layer, x), rtol=1e-9)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape = CASES["groups"]
    x = torch.randn(shape).double()
    whole, parts = (InputMoments(layer.double(), torch.Generator()) for _ in range(2))
    whole.add(x)
    monkeypatch.setattr(input_moments, "CHUNK", 1)
    parts.add(x)
    assert torch.allclose(whole.mean(), parts.mean(), rtol=1e-12)


@pytest.mark.parametrize("name", ["linear, tokens", "convolution"])
def test_a_sample_of_the_patches_is_close_and_the_seed_fixes_it(name: str) -> None:
    layer, _ = CASES[name]
    shape = (64, 50, 7) if isinstance(layer, nn.Linear) else (64, 4, 30, 30)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    means = []
    for seed, per_sample, batch in ((0, 1 << 20, 64), (1, 16, 64), (1, 16, 64), (2, 16, 64)):
        moments = InputMoments(layer.double(), torch.Generator().manual_seed(seed), per_sample)
        for part in x.split(batch):
            moments.add(part)
        means.append(moments.mean())
    assert torch.equal(means[1], means[2])
    assert not torch.equal(means[1], means[3])
    assert float((means[1] - means[0]).abs().max()) < 6 / 1024**0.5


def test_batches_change_nothing_where_patches_are_drawn() -> None:
    layer, _ = CASES["convolution"]
    x = torch.randn(10, 4, 30, 30).double()
    whole, parts = (InputMoments(layer.double(), torch.Generator(), 16) for _ in range(2))
    whole.add(x)
    for part in x.split(3):
        parts.add(part)
    assert torch.allclose(whole.mean(), parts.mean(), rtol=1e-12)


def test_every_sample_has_patches_of_its_own() -> None:
    layer = nn.Conv2d(1, 1, 1)
    x = torch.arange(900.0).view(1, 1, 30, 30).expand(40, 1, 30, 30)
    moments = InputMoments(layer, torch.Generator().manual_seed(0), 1)
    moments.add(x)
    same_for_all = {float(v) ** 2 for v in range(900)}
    assert float(moments.mean()) not in same_for_all


def test_a_sample_without_its_batch_axis() -> None:
    layer, shape = CASES["convolution"]
    x = torch.randn(shape[1:]).double()
    one, many = (InputMoments(layer.double(), torch.Generator()) for _ in range(2))
    one.add(x)
    many.add(x.unsqueeze(0))
    assert torch.equal(one.mean(), many.mean())


def test_layers_without_patches_and_moments_without_batches() -> None:
    assert why_no_patches(nn.Linear(2, 2)) == ""
    reason = "ConvTranspose2d does not multiply patches of its input"
    assert why_no_patches(nn.ConvTranspose2d(2, 2, 3)) == reason
    model = nn.Sequential(Padded(2, 2, 3), nn.ConvTranspose2d(2, 2, 3))
    student = simulate(model, PWLQSpec(3), None)
    assert [why_no_patches(layer) for layer in student] == ["", reason]
    with pytest.raises(ValueError, match="has seen no batch"):
        InputMoments(nn.Linear(2, 2), torch.Generator()).mean()
    with pytest.raises(NoProductError, match="does not compute what Conv2d does"):
        InputMoments(Rescaled(2, 2, 1), torch.Generator()).add(torch.randn(1, 2, 3, 3))
