import numpy as np
import pytest
import torch

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.pwlq import (
    PWLQSpec,
    UniformSpec,
    fake_quantize,
    load_quantized,
    quantize,
    save_quantized,
    spec_from_name,
)
from zaq_plugin.pwlq.codebook import CodebookSpec
from zaq_plugin.pwlq.overflow import LIMIT, worst_pairs
from zaq_plugin.pwlq.registry import spec_from_json


def weights(seed: int = 0, length: int = 288) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    rows = [draw.standard_normal(length), draw.laplace(size=length), draw.standard_t(4, length)]
    rows += [np.abs(draw.standard_normal(length)), -np.abs(draw.laplace(size=length))]
    return torch.from_numpy(np.stack([*rows, np.zeros(length)])).float()


def lloyd(row: np.ndarray, count: int) -> float:
    """Squared error of the best of two of Lloyd's optima, plainly."""
    share = (np.arange(count) + 0.5) / count
    errors = []
    for levels in (np.quantile(row, share), row.min() + np.ptp(row) * share):
        levels = np.array(levels)
        for _ in range(200):
            index = np.abs(row[:, None] - levels).argmin(1)
            for j in set(index.tolist()):
                levels[j] = row[index == j].mean()
        errors.append(np.square(row - levels[np.abs(row[:, None] - levels).argmin(1)]).sum())
    return min(errors)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_error_is_that_of_lloyds_iteration_written_plainly(bits: int) -> None:
    w = weights()
    edges = CodebookSpec(bits).solve(w)[0].double().numpy()
    for row, levels in zip(w.double().numpy(), edges, strict=True):
        error = np.square(row - levels[np.abs(row[:, None] - levels).argmin(1)]).sum()
        assert error <= lloyd(row, 2**bits) * 1.05 + 1e-9
        assert (np.diff(levels) >= 0).all()


def test_few_distinct_values_are_all_held() -> None:
    w = torch.tensor([[-3.0, -1.0, 2.0, 2.0, 127.0, -3.0]])
    q = quantize(w, CodebookSpec(3, overflow="allowed"))
    torch.testing.assert_close(q.dequantize(), w)


@pytest.mark.parametrize("overflow", ["pairs", "allowed"])
def test_weights_take_the_nearest_of_levels_that_are_int8(overflow: str) -> None:
    w = weights()
    q = quantize(w, CodebookSpec(4, overflow=overflow))  # type: ignore[arg-type]
    assert q.codebook.dtype == torch.int8
    assert torch.equal(q.dequantize(), q.integer_weight() * q.scale.unsqueeze(1))
    assert torch.equal(fake_quantize(w, q.spec), q.dequantize())
    levels = q.codebook.double() * q.scale.double().unsqueeze(1)
    distance = (w.double().unsqueeze(2) - levels.unsqueeze(1)).abs().amin(2)
    missed = ((q.dequantize().double() - w).abs() - distance).abs() > 1e-5
    if overflow == "allowed":
        assert not bool(missed.any())
    else:
        assert float(missed.double().mean()) < 0.01  # the guard's
        assert int(worst_pairs(q.integer_weight(), 0).max()) <= LIMIT


def test_it_is_a_bound_for_formats_of_as_many_levels() -> None:
    w = weights()
    for bits in (3, 4, 5):
        free = (quantize(w, CodebookSpec(bits, "allowed")).dequantize() - w).square().sum()
        for other in (
            PWLQSpec(bits - 1, overflow="allowed"),
            UniformSpec(bits, "asymmetric", "mse"),
        ):
            assert free < (quantize(w, other).dequantize() - w).square().sum()


def test_each_level_learns_from_the_values_that_take_it() -> None:
    w, spec = weights(), CodebookSpec(3, "allowed")
    q = quantize(w, spec)
    assert q.edges is not None
    edges = q.edges.clone().requires_grad_()
    (fake_quantize(w, spec, edges=edges) * w).sum().backward()
    codes = torch.nn.functional.one_hot(q.codes.long(), 8)
    assert edges.grad is not None
    used = q.codebook[:5].diff(dim=1).amin(1) > 0  # levels apart
    assert bool(used.all())
    wanted = (codes * w.unsqueeze(2)).sum(1)
    torch.testing.assert_close(edges.grad[0, :5], wanted[:5], rtol=1e-4, atol=1e-4)


def test_text_file_and_real_size(tmp_path) -> None:
    spec = spec_from_name("codebook4")
    assert spec == CodebookSpec(4) == spec_from_json(spec.to_json())
    assert spec.label == "codebook 8b MAC/4b stored (table of 16 int8 a channel)"
    q = quantize(weights(), spec)
    table = 6 * (16 + 4)  # levels, and a scale, a channel
    assert q.stored_bytes == 6 * 288 // 2 + table
    assert spec.table_bytes(6) == table
    path = tmp_path / "w.safetensors"
    save_quantized(path, {"w": q})
    loaded = load_quantized(path)["w"]
    assert torch.equal(loaded.dequantize(), q.dequantize())
    assert loaded.stored_bytes == q.stored_bytes


def test_widths_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="bits must be from 2 to 7; got 8"):
        CodebookSpec(8)
    with pytest.raises(ValueError, match="codebook2 to codebook7"):
        spec_from_name("codebook8")


def test_training_of_clip_and_breakpoints_is_refused() -> None:
    with pytest.raises(ValueError, match="trains clip and breakpoints, which codebook"):
        PWLQPerChannelFakeQuantize(CodebookSpec(4), learnable=True)


def test_weights_that_moved_do_not_overflow_on_the_levels_they_had() -> None:
    spec = CodebookSpec(4)
    w = weights().view(6, 32, 3, 3)
    edges = quantize(w, spec).edges
    for seed in range(5):
        moved = w + 0.5 * torch.randn(w.shape, generator=torch.Generator().manual_seed(seed))
        q = quantize(moved, spec, edges=edges)
        assert int(worst_pairs(q.integer_weight(), 0).max()) <= LIMIT
        assert torch.equal(fake_quantize(moved, spec, edges=edges), q.dequantize())
