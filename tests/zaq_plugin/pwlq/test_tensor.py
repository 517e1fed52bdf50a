"""The quantized tensor: its figures, its file, and its error messages."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zaq_plugin.pwlq import (
    PWLQSpec,
    UniformSpec,
    correct_mean_std,
    correct_spread,
    fake_quantize,
    load_quantized,
    quantize,
    save_quantized,
    solve_edges,
)

SPECS = [
    PWLQSpec(),
    PWLQSpec(bits=8, grid="float", breakpoints=2),
    PWLQSpec(bits=3, breakpoints=3, symmetry="symmetric"),
    UniformSpec(8, "asymmetric"),
    UniformSpec(4),
]


def weights(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.02


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_figures(spec):
    w = weights(8, 6, 3, 3)
    q = quantize(w, spec)
    value, original = q.dequantize().double().numpy(), w.double().numpy()
    noise = ((value - original) ** 2).sum()
    assert q.sqnr_db == pytest.approx(10 * math.log10((original**2).sum() / noise), abs=1e-3)
    codes = q.codes.numpy()
    share = np.bincount(codes.reshape(-1).astype(int)) / codes.size
    share = share[share > 0]
    assert q.entropy_bits == pytest.approx(-(share * np.log2(share)).sum())
    assert q.entropy_bits <= q.stored_bits
    edges_a_channel = (1 + spec.breakpoints) * (2 if spec.symmetry == "asymmetric" else 1)
    codes_bytes = math.ceil(w.numel() * q.stored_bits / 8)
    # A byte a channel tells the largest level of a piecewise linear grid on int8.
    largest = 8 if spec.kind == "pwlq" and spec.grid == "int8" else 0
    assert q.stored_bytes == codes_bytes + 8 * 4 * edges_a_channel + largest
    moved = correct_mean_std(q, w)
    assert moved.stored_bytes == codes_bytes + 8 * 4 * (spec.num_levels + 1)
    assert (q.mac_bits, q.stored_bits) == (spec.mac_bits, spec.stored_bits)
    if spec.kind == "pwlq":
        edges = solve_edges(w, spec)
        inside = (w <= edges[0, :, 0].view(-1, 1, 1, 1)) & (w >= -edges[-1, :, 0].view(-1, 1, 1, 1))
        assert q.center_fraction == pytest.approx(float(inside.double().mean()))
    else:
        assert q.center_fraction == 1.0


@pytest.mark.parametrize("spec", SPECS[2:], ids=lambda s: s.label)
def test_integer_weight_times_scale_is_the_value(spec):
    q = quantize(weights(8, 6, 3, 3), spec)
    integers = q.integer_weight()
    assert integers.dtype in (torch.int8, torch.int16)
    assert torch.equal(integers.float() * q.scale.view(-1, 1, 1, 1), q.dequantize())


def test_stock_per_channel_quantizer_reproduces_the_snapped_weight():
    """abs-max, symmetric, [-127, 127], as every int8 tool computes it."""
    for bits in (2, 3, 4, 5, 6):
        q = quantize(weights(8, 60), PWLQSpec(bits=bits, overflow="allowed"))
        value = q.dequantize()
        scale = value.abs().amax(1) / 127
        again = torch.fake_quantize_per_channel_affine(
            value, scale, torch.zeros(8, dtype=torch.int32), 0, -127, 127
        )
        torch.testing.assert_close(again, value, rtol=1e-6, atol=0)


def test_integer_weight_needs_the_int8_grid():
    with pytest.raises(ValueError, match="needs the int8 grid.*Quantize with grid='int8'"):
        quantize(weights(4, 8), PWLQSpec(grid="float")).integer_weight()


def test_save_and_load(tmp_path):
    tensors = {f"layer.{i}": quantize(weights(8, 6, 3, 3), s) for i, s in enumerate(SPECS)}
    tensors["per_tensor"] = quantize(weights(8, 6).bfloat16(), PWLQSpec(), axis=None)
    tensors["axis1"] = quantize(weights(8, 6, 3), PWLQSpec(), axis=1)
    tensors["moved"] = correct_mean_std(tensors["layer.0"], weights(8, 6, 3, 3))
    tensors["exact"] = quantize(torch.zeros(3, 4), PWLQSpec())
    path = tmp_path / "weights.safetensors"
    save_quantized(path, tensors)
    loaded = load_quantized(path)
    assert set(loaded) == set(tensors)
    for name, q in tensors.items():
        other = loaded[name]
        assert torch.equal(other.dequantize(), q.dequantize())
        assert other.dequantize().dtype == q.dequantize().dtype
        assert torch.equal(other.codes, q.codes)
        assert torch.equal(other.codebook, q.codebook)
        assert other.codebook.dtype == q.codebook.dtype
        assert (other.spec, other.axis, other.stored_bytes) == (q.spec, q.axis, q.stored_bytes)
        assert other.sqnr_db == q.sqnr_db
    payload = sum(q.stored_bytes for q in tensors.values())
    again = tmp_path / "again.safetensors"
    save_quantized(again, tensors)
    assert again.read_bytes() == path.read_bytes()
    assert path.stat().st_size < payload + 1500 * len(tensors)


def test_file_errors(tmp_path):
    with pytest.raises(ValueError, match="no tensors given; nothing was quantized"):
        save_quantized(tmp_path / "x.safetensors", {})
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: not a file of quantized tensors"):
        load_quantized(tmp_path / "other.safetensors")


def test_damaged_code_is_found(tmp_path):
    q = quantize(weights(4, 8), PWLQSpec(bits=3))
    damaged = torch.full_like(q.codes, 15)
    object.__setattr__(q, "codes", damaged)
    save_quantized(tmp_path / "w.safetensors", {"conv": q})
    with pytest.raises(ValueError, match="conv: code 15 lies outside its codebook of 15 levels"):
        load_quantized(tmp_path / "w.safetensors")


@pytest.mark.parametrize("function", [quantize, fake_quantize, solve_edges])
def test_input_errors(function):
    spec = PWLQSpec()
    with pytest.raises(TypeError, match=r"floating-point tensor; got torch\.int8.*dequantize them"):
        function(torch.zeros(2, 2, dtype=torch.int8), spec)
    with pytest.raises(TypeError, match=r"w must be a torch\.Tensor; got list"):
        function([1.0], spec)
    with pytest.raises(TypeError, match="spec must be a format such as a PWLQSpec; got int"):
        function(torch.zeros(2, 2), 4)
    with pytest.raises(ValueError, match=r"w is empty, shape \(0, 3\)"):
        function(torch.zeros(0, 3), spec)
    with pytest.raises(
        ValueError, match=r"axis 2 does not exist in w of shape \(2, 2\).*from -2 to 1"
    ):
        function(torch.zeros(2, 2), spec, 2)
    with pytest.raises(TypeError, match="axis must be an int or None"):
        function(torch.zeros(2, 2), spec, 0.0)
    w = torch.ones(2, 3)
    w[1, 2] = torch.nan
    with pytest.raises(
        ValueError, match=r"1 NaN or infinite value.*first at index \(1, 2\) \(nan\)"
    ):
        function(w, spec)
    with pytest.raises(ValueError, match=r"NaN or infinite.*\(-inf\)"):
        function(torch.tensor([[1.0, -torch.inf]]), spec)
    with pytest.raises(ValueError, match="policy='given' takes clip and breakpoints"):
        function(torch.ones(2, 2), PWLQSpec(policy="given"))


@pytest.mark.parametrize("function", [quantize, fake_quantize])
def test_edges_errors(function):
    w, spec = torch.ones(2, 4), PWLQSpec(symmetry="symmetric")
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected \(1, 2, 2\)"):
        function(w, spec, edges=torch.ones(2, 2))
    with pytest.raises(ValueError, match="edges must ascend"):
        function(w, spec, edges=torch.tensor([[[2.0, 1.0], [0.1, 1.0]]]))
    with pytest.raises(ValueError, match="edges must be finite and >= 0"):
        function(w, spec, edges=torch.full((1, 2, 2), -1.0))
    with pytest.raises(TypeError, match=r"edges must be a floating-point tensor; got torch\.int64"):
        function(w, spec, edges=torch.ones(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize("spec", [PWLQSpec(bits=3), PWLQSpec(bits=3, grid="float")])
def test_mean_and_spread_correction(spec):
    w = weights(8, 200) + 0.05
    q = quantize(w, spec)
    corrected = correct_mean_std(q, w).dequantize()
    torch.testing.assert_close(corrected.mean(1), w.mean(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(corrected.std(1), w.std(1), rtol=1e-4, atol=1e-6)
    on_grid, shift = correct_spread(q, w)
    torch.testing.assert_close(on_grid.dequantize().std(1), w.std(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(on_grid.dequantize().mean(1) + shift, w.mean(1))
    assert on_grid.codebook.dtype == q.codebook.dtype
    zero = quantize(torch.zeros(2, 5), spec)
    assert torch.equal(correct_mean_std(zero, torch.zeros(2, 5)).dequantize(), torch.zeros(2, 5))


def test_it_is_printed_in_one_line() -> None:
    q = quantize(torch.randn(8, 3, 3, 3), PWLQSpec(bits=4))
    assert repr(q) == (
        f"PWLQTensor(8x3x3x3, {q.spec.label}, {q.sqnr_db:.1f} dB, {q.stored_bytes} bytes)"
    )
