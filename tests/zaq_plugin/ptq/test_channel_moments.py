"""Moments from BatchNorm statistics, against integration, sampling, and sums by hand."""

import numpy as np
import pytest
import torch
from layers import float_weight
from scipy import integrate, stats
from torch import Tensor, nn
from torch.nn import functional as F

from zaq_plugin.ptq import fold_batch_norm, simulate
from zaq_plugin.ptq.bias import correct_bias_by_moments
from zaq_plugin.ptq.channel_moments import clipped_normal, input_moments
from zaq_plugin.ptq.fold import Normal, remembered_statistics
from zaq_plugin.pwlq import UniformSpec


@pytest.mark.parametrize("top", [np.inf, 6.0, 1.5])
def test_clipped_normal_by_integration(top: float) -> None:
    mu, sigma = [-2.0, 0.0, 0.7, 5.0, 9.0], [1.0, 0.5, 2.0, 1.0, 3.0]
    normal = Normal(torch.tensor(mu).double(), torch.tensor(sigma).double())
    mean, var = clipped_normal(normal, top)
    for i, (m, s) in enumerate(zip(mu, sigma, strict=True)):
        density = stats.norm(m, s).pdf

        def moment(power: int, m: float = m, s: float = s, density: object = density) -> float:
            def value(x: float) -> float:
                return min(max(x, 0), top) ** power * density(x)  # type: ignore[operator]

            points = [p for p in (0.0, top) if m - 12 * s < p < m + 12 * s]
            return float(integrate.quad(value, m - 12 * s, m + 12 * s, points=points)[0])

        assert float(mean[i]) == pytest.approx(moment(1), rel=1e-6, abs=1e-9)
        assert float(var[i]) == pytest.approx(moment(2) - moment(1) ** 2, rel=1e-5, abs=1e-9)


class OptionA(nn.Module):
    """A residual sum whose shortcut is sliced and padded, a SiLU, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.b, self.nb = nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.c, self.d = nn.Conv2d(8, 4, 1), nn.Conv2d(12, 2, 1)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.na(self.a(x)))
        y = self.nb(self.b(x)) + F.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, 2, 2])
        y = F.silu(y)
        z = self.d(torch.cat([self.c(y), y], 1))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(z, 1), 1))


def option_a() -> OptionA:
    torch.manual_seed(0)
    model = OptionA().eval()
    for norm in (model.na, model.nb):
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.weight, 0.2, 1.5)
        norm.running_var.fill_(1e-4)  # eps matters
    return model


def test_moments_follow_the_graph() -> None:
    model = option_a()
    folded = fold_batch_norm(model)
    remembered = remembered_statistics(model, folded)
    moments = input_moments(folded, remembered)
    assert moments["a"] is None
    draws = 400_000
    generator = torch.Generator().manual_seed(0)

    def drawn(norm: nn.BatchNorm2d) -> Tensor:
        z = torch.randn(draws, norm.num_features, generator=generator).double()
        deviation = norm.weight * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
        return (z * deviation + norm.bias).detach()

    x = drawn(model.na).relu()
    y = F.pad(x, [2, 2]) + drawn(model.nb)
    y = F.silu(y)
    weight, bias = model.c.weight.detach().double().flatten(1), model.c.bias.detach().double()
    joined = torch.cat([(y @ weight.T + bias).mean(0), y.mean(0)])
    for name, mean in (("b", x.mean(0)), ("c", y.mean(0)), ("d", joined)):
        moment = moments[name]
        assert moment is not None
        # A sum is taken for normal again, which a clipped term is not quite.
        torch.testing.assert_close(moment.mean, mean, rtol=0.05, atol=0.03)
    torch.testing.assert_close(moments["b"].var, x.var(0), rtol=0.02, atol=1e-3)  # type: ignore[union-attr]
    assert bool((moments["b"].low == 0).all())  # type: ignore[union-attr]
    assert float(moments["c"].low.min()) == pytest.approx(-0.278, abs=0.01), "SiLU's least value"  # type: ignore[union-attr]


def test_bias_correction_takes_out_the_expected_error() -> None:
    model = option_a()
    folded = fold_batch_norm(model)
    moments = input_moments(folded, remembered_statistics(model, folded))
    student = simulate(folded, UniformSpec(3), None, depthwise="as-told")
    before = {n: m.bias.detach().double().clone() for n, m in folded.named_modules()
              if isinstance(m, nn.Conv2d | nn.Linear)}  # fmt: skip
    taken = correct_bias_by_moments(student, moments)
    assert set(taken) == {"b", "c", "d", "head"}
    for name in taken:
        layer = student.get_submodule(name)
        error = layer.weight.detach().double() - float_weight(layer).detach().double()
        mean = moments[name].mean  # type: ignore[union-attr]
        for o in range(error.shape[0]):
            expected = sum(float(error[o, i].sum() * mean[i]) for i in range(len(mean)))
            assert float(taken[name][o]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            change = float(before[name][o] - layer.bias[o].double())
            assert change == pytest.approx(expected, rel=1e-3, abs=1e-6)
    again = correct_bias_by_moments(student, moments)
    assert all(torch.equal(again[n], taken[n]) for n in taken), "not idempotent"
    for name in taken:  # a float weight that has been moved is no measure; the float model's is
        layer = student.get_submodule(name)
        float_weight(layer).data.copy_(layer.weight.detach())
    moved = correct_bias_by_moments(student, moments, reference=folded)
    for name in taken:
        torch.testing.assert_close(moved[name], taken[name], rtol=1e-5, atol=1e-8)


def test_a_model_without_batch_norm_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with pytest.raises(ValueError, match="Sequential has no BatchNorm behind a convolution"):
        remembered_statistics(model, fold_batch_norm(model.eval()))


@pytest.mark.parametrize("kind", ["image flattened", "tokens flattened", "positions", "joined"])
@torch.no_grad()
def test_moments_are_those_of_the_features_that_a_layer_sees(kind: str) -> None:
    """Each input feature's mean, by drawing what BatchNorm gives out."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4) if "tokens" in kind else nn.Conv2d(3, 4, 1)
            wide = {"image flattened": 24, "tokens flattened": 20, "positions": 6, "joined": 48}
            self.last = nn.Linear(wide[kind], 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            if kind == "joined":
                x = torch.cat([x, x], 1)
            return self.last(x.flatten(2 if kind == "positions" else 1))

    model = Net().eval()
    normal = Normal(torch.tensor([0.0, 1.0, -1.0, 3.0]).double(), torch.ones(4).double())
    shape = (2, 5, 3) if "tokens" in kind else (2, 3, 2, 3)
    moments = input_moments(model, {"first": normal}, example_inputs=(torch.randn(shape),))["last"]
    if kind == "positions":  # each is a mixture of all channels
        assert moments is None
        return
    z = torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0)).double()
    each = (z + normal.mean).relu().mean(0)
    if kind == "tokens flattened":
        right = each.repeat(5)
    else:
        right = each.repeat_interleave(6).repeat(2 if kind == "joined" else 1)
    assert moments is not None
    torch.testing.assert_close(moments.mean, right, rtol=0.02, atol=0.01)
