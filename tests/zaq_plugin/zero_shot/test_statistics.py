"""What BatchNorms remember of a model's images."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zaq_plugin.zero_shot.statistics import (
    BatchNormLoss,
    ChannelMoments,
    batch_norms,
    has_batch_norm,
    insert_probes,
)


class Functional(nn.Module):
    """A BatchNorm that is a function call, as timm's are after tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        return F.batch_norm(
            self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps
        )


def direct(x: Tensor, norm: nn.BatchNorm2d, relative: bool = False) -> float:
    """The loss of one layer in float64."""
    x = x.detach().double().numpy()
    mean, std = x.mean((0, 2, 3)), np.sqrt(x.var((0, 2, 3)) + 1e-8)
    hat_mean = norm.running_mean.double().numpy()
    hat_std = np.sqrt(norm.running_var.double().numpy())
    gap_mean, gap_std = mean - hat_mean, std - hat_std
    if relative:
        gap_mean, gap_std = gap_mean / (hat_std + 1e-3), gap_std / (hat_std + 1e-3)
    return float((gap_mean**2).mean() + (gap_std**2).mean())


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 7), (4, 3, 5, 6), (2, 3, 2, 3, 4)])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_channel_moments_and_their_gradient_are_torch_s(shape: tuple[int, ...], last: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + 3
    if last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    var, mean = ChannelMoments.apply(mine)
    axes = [d for d in range(len(shape)) if d != 1]
    expected = torch.var_mean(theirs, dim=axes, correction=0)
    torch.testing.assert_close(var.double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean.double(), expected[1], rtol=1e-5, atol=1e-6)
    weights = torch.tensor([1.0, -2.0, 0.5])
    ((var + 1e-8).sqrt() * weights + mean.square()).sum().backward()
    ((expected[0] + 1e-8).sqrt() * weights + expected[1].square()).sum().backward()
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_value_is_the_mean_over_layers(tiny: Callable[..., nn.Module], relative: bool) -> None:
    model = tiny()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Tensor] = {}
    for name, norm in batch_norms(model).items():
        norm.register_forward_pre_hook(
            lambda m, args, name=name: inputs.__setitem__(name, args[0].detach())
        )
    loss = BatchNormLoss(model, relative=relative)
    with loss.recording():
        model(x)
    expected = np.mean(
        [direct(inputs[n], m, relative) for n, m in batch_norms(model).items()]  # type: ignore[arg-type]
    )
    assert len(loss) == 6
    assert float(loss.value()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("how", ["fx", "export"])
def test_operators_of_a_graph_count_too(how: str) -> None:
    torch.manual_seed(0)
    model = Functional().eval()
    x = torch.randn(4, 3, 8, 8)
    if how == "fx":
        graph: nn.Module = torch.fx.symbolic_trace(model)
    else:
        graph = torch.export.export(model, (x,)).module()
    before = graph(x)
    loss = BatchNormLoss(graph)
    assert len(loss) == 1
    with loss.recording():
        after = graph(x)
    assert torch.equal(before, after)
    assert float(loss.value()) == pytest.approx(direct(model.conv(x), model.norm), rel=1e-4)


def test_gradient_reaches_the_images(tiny: Callable[..., nn.Module]) -> None:
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    model = tiny()
    loss = BatchNormLoss(model)
    with loss.recording():
        model(x)
    loss.value().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_without_batch_norm_the_term_falls_away(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())
    with caplog.at_level(logging.INFO):
        loss = BatchNormLoss(model)
    assert len(loss) == 0
    assert "has no BatchNorm: the BatchNorm-statistics terms fall away" in caplog.text
    with loss.recording():
        model(torch.zeros(1, 3, 8, 8))
    assert float(loss.value()) == 0


def test_probes_are_for_graphs_only(tiny: Callable[..., nn.Module]) -> None:
    assert insert_probes(tiny()) == 0


def test_batch_norm_is_found_in_modules_and_in_graphs_which_stay_as_they_are() -> None:
    eager, example = Functional().eval(), torch.zeros(2, 3, 8, 8)
    traced = torch.fx.symbolic_trace(eager)  # its module is gone, the call is left
    exported = torch.export.export(nn.Sequential(eager.conv, eager.norm), (example,)).module()
    before = str(exported.graph)
    assert all(has_batch_norm(model) for model in (eager, traced, exported))
    assert str(exported.graph) == before
    without = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.LayerNorm(6)).eval()
    assert not has_batch_norm(without)
    assert not has_batch_norm(torch.export.export(without, (example,)).module())
    assert not has_batch_norm(nn.BatchNorm2d(3, track_running_stats=False))
