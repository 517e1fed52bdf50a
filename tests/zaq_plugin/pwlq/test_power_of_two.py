import numpy as np
import pytest
import torch

from zaq_plugin.pwlq import fake_quantize, load_quantized, quantize, save_quantized, spec_from_name
from zaq_plugin.pwlq.overflow import LIMIT, worst_pairs
from zaq_plugin.pwlq.power_of_two import PowerOfTwoSpec
from zaq_plugin.pwlq.registry import spec_from_json


def weights(seed: int = 0) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    rows = [draw.standard_normal(96), draw.laplace(size=96), draw.standard_t(3, 96)]
    rows += [np.abs(draw.standard_normal(96)), draw.uniform(-1, 1, 96), np.zeros(96)]
    return torch.from_numpy(np.stack(rows)).float().view(6, 6, 4, 4)


def nearest(rows: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return levels[np.abs(rows[:, None] - levels).argmin(1)]


def written_out(bits: int) -> np.ndarray:
    powers = 2.0 ** np.arange(2 ** (bits - 1) - 1)
    return np.concatenate([-powers[::-1], [0.0], powers])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weights_take_the_nearest_of_the_powers_written_out(bits: int) -> None:
    w, spec = weights(), PowerOfTwoSpec(bits)
    q = quantize(w, spec)
    assert q.codebook.dtype == torch.int8
    for row, made, scale in zip(w.flatten(1), q.dequantize().flatten(1), q.scale, strict=True):
        levels = written_out(bits) * scale.item()
        distance = np.abs(row.double().numpy()[:, None] - levels).min(1)
        np.testing.assert_allclose(np.abs(made.double().numpy() - row.numpy()), distance, atol=1e-6)
        assert set((made / scale).round().int().tolist()) <= set(written_out(bits).astype(int))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_scale_of_a_fine_sweep_has_less_squared_error(bits: int, seed: int) -> None:
    w = weights(seed)
    made = quantize(w, PowerOfTwoSpec(bits)).dequantize().flatten(1).double().numpy()
    for row, q in zip(w.flatten(1).double().numpy(), made, strict=True):
        largest = np.abs(row).max()
        sweep = [
            np.square(nearest(row, written_out(bits) * s) - row).sum()
            for s in np.geomspace(0.02, 1.5, 2000) * largest / 2 ** (2 ** (bits - 1) - 2)
        ]
        assert np.square(q - row).sum() <= min(sweep) * 1.002 + 1e-12


def test_two_neighbours_cannot_overflow() -> None:
    extreme = torch.where(torch.randn(8, 40) > 0, 3.0, -3.0)
    q = quantize(extreme, PowerOfTwoSpec(4))
    assert int(q.codebook.max()) == 64
    assert int(worst_pairs(q.integer_weight(), 0).max()) <= LIMIT
    assert not PowerOfTwoSpec(4).guarded


def test_more_bits_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="bits must be from 2 to 4; got 5"):
        PowerOfTwoSpec(5)
    with pytest.raises(ValueError, match="pot2 to pot4"):
        spec_from_name("pot5")


def test_fake_quantization_is_the_tensor_and_the_clip_learns() -> None:
    w, spec = weights(), PowerOfTwoSpec(4)
    q = quantize(w, spec)
    assert torch.equal(fake_quantize(w, spec), q.dequantize())
    assert q.edges is not None
    edges = q.edges.clone().requires_grad_()
    fake_quantize(w, spec, edges=edges).square().sum().backward()
    # Straight through inside, proportional beyond: dq/dm = (q - [|w| <= m] w) / m.
    rows, made, clip = w.flatten(1), q.dequantize().flatten(1), q.edges[0]
    slope = (made - rows * (rows.abs() <= clip)) / clip.clamp(min=1e-30)
    wanted = (2 * made * slope).sum(1) * (clip[:, 0] > 0)
    torch.testing.assert_close(edges.grad[0, :, 0], wanted, rtol=1e-4, atol=1e-4)


def test_text_file_and_size(tmp_path) -> None:
    spec = spec_from_name("pot4")
    assert spec == PowerOfTwoSpec(4) == spec_from_json(spec.to_json())
    assert spec.label == "power of two 4b MAC/4b stored (shifts)"
    q = quantize(weights(), spec)
    assert q.stored_bytes == 6 * 96 // 2 + 4 * 6
    path = tmp_path / "w.safetensors"
    save_quantized(path, {"w": q})
    assert torch.equal(load_quantized(path)["w"].dequantize(), q.dequantize())
