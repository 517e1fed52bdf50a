"""Chosen activation ranges against exhaustive search and the formula."""

import pytest
import torch

from zaq_plugin.fake_quantize import ActivationFakeQuantize
from zaq_plugin.ptq import analytic
from zaq_plugin.ptq.analytic import (
    AnalyticObserver,
    LeastCubesObserver,
    LeastSquaresObserver,
    analytic_range,
)


def error_at(x: torch.Tensor, low: float, high: float, bits: int, power: int = 2) -> float:
    """Squared or other error on an affine grid, in float64."""
    step = (high - low) / (2**bits - 1)
    zero = round(-low / step)
    x = x.double()
    code = (torch.round(x / step) + zero).clamp(0, 2**bits - 1)
    return float(((code - zero) * step - x).abs().pow(power).mean())


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("one_sided", [False, True])
def test_least_squares_is_as_good_as_an_exhaustive_search(bits: int, one_sided: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1500, generator=generator) ** 3 + 0.3
    x = x.relu() if one_sided else x
    quantizer = ActivationFakeQuantize(LeastSquaresObserver, bits)
    quantizer(x)
    out = quantizer(x)
    error = float((out - x).double().square().mean())
    lows = [0.0] if one_sided else [float(x.min()) * k / 25 for k in range(1, 26)]
    highs = [float(x.max()) * k / 25 for k in range(1, 26)]
    best = min(error_at(x, low, high, bits) for low in lows for high in highs)
    assert error <= 1.1 * best
    assert error < 0.75 * error_at(x, float(x.min()), float(x.max()), bits)


@pytest.mark.parametrize("one_sided", [False, True])
def test_least_cubes_are_an_exhaustive_search_s_and_clip_less_than_squares(one_sided: bool) -> None:
    x = torch.randn(8, 1500, generator=torch.Generator().manual_seed(0)) ** 3 + 0.3
    x = x.relu() if one_sided else x
    squares, cubes = LeastSquaresObserver(bits=4), LeastCubesObserver(bits=4)
    quantizer = ActivationFakeQuantize(LeastCubesObserver, 4)
    for watcher in (squares, cubes, quantizer):
        watcher(x)
    error = float((quantizer(x) - x).double().abs().pow(3).mean())
    lows = [0.0] if one_sided else [float(x.min()) * k / 25 for k in range(1, 26)]
    highs = [float(x.max()) * k / 25 for k in range(1, 26)]
    assert error <= 1.1 * min(error_at(x, low, high, 4, 3) for low in lows for high in highs)
    assert float(squares.max_val) < 0.9 * float(cubes.max_val)
    assert float(cubes.max_val) < float(x.max())


@pytest.mark.parametrize("observer", [LeastSquaresObserver, LeastCubesObserver])
@pytest.mark.parametrize("shape", [(40, 60, 14, 14), (64, 16, 32, 32)], ids=str)
def test_borders_are_not_taken_for_the_whole(
    observer: type, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps whose first column is small: the clip is the one of all values."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).relu()
    x[..., 0] *= 0.05
    seen, oracle = observer(bits=4), observer(bits=4)
    seen(x)
    monkeypatch.setattr(analytic, "SAMPLE", x.numel())
    oracle(x)
    assert float(seen.max_val) == pytest.approx(float(oracle.max_val), rel=0.1)


def test_batches_are_averaged() -> None:
    observer = AnalyticObserver(bits=4)
    batches = [torch.randn(1000), 1.2 * torch.randn(1000)]
    for batch in batches:
        observer(batch)
    ranges = [analytic_range(batch, 4) for batch in batches]
    assert float(observer.max_val) == pytest.approx(float(sum(r[1] for r in ranges)) / 2, rel=1e-6)
    assert float(observer.min_val) == pytest.approx(float(sum(r[0] for r in ranges)) / 2, rel=1e-6)


@pytest.mark.parametrize("observer", [AnalyticObserver, LeastSquaresObserver])
def test_signals_of_different_size_are_all_covered(observer: type) -> None:
    generator = torch.Generator().manual_seed(1)
    small, large = observer(bits=8), observer(bits=8)
    for _ in range(3):
        x = torch.randn(40, 50, generator=generator)
        large(x)
        small(x)
        small(x / 50)
    reach = [float(large.max_val), float(small.max_val)]
    assert 0.95 * reach[0] <= reach[1] <= 1.2 * reach[0]
