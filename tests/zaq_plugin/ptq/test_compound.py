"""Weights put together from several tensors, against float64 arithmetic and honest counting."""

import pytest
import torch
from layers import float_weight, view_of
from torch import nn

from zaq_plugin.ptq import audit, correct_bias, quantized_tensors, simulate, twin
from zaq_plugin.ptq.compound import (
    AllocatedFakeQuantize,
    CompoundFakeQuantize,
    ResidualFakeQuantize,
    install,
)
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec, quantize

SPEC = UniformSpec(4, "asymmetric", "minmax")


def student_of(make: type[CompoundFakeQuantize] | None = None, **more: object) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    student = simulate(model, SPEC, None)
    if make is not None:
        layer = student[2]
        install(view_of(layer), make(SPEC, 0, float_weight(layer).detach(), **more))  # type: ignore[arg-type]
    return student


def rounded(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """Asymmetric min-max quantization of each row, in float64."""
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    step = (high - low) / (2**bits - 1)
    zero = torch.round(-low / step)
    return ((torch.round(rows / step) + zero).clamp(0, 2**bits - 1) - zero) * step


def test_two_tensors_are_the_sum_of_two_quantizations() -> None:
    student = student_of(ResidualFakeQuantize)
    weight = float_weight(student[2]).detach()
    rows = weight.double().flatten(1)
    first = rounded(rows, 4)
    expected = first + rounded(rows - first, 4)
    torch.testing.assert_close(
        student[2].weight.double().flatten(1), expected, rtol=1e-5, atol=1e-6
    )
    (_, record) = audit(student).records
    assert (record.mac_bits, record.stored_bits) == (4, 8)
    one = quantize(weight, SPEC)
    assert record.stored_bytes == 2 * one.stored_bytes
    assert record.sqnr_db > one.sqnr_db + 15
    assert "twice the multiplications" in str(record.reason)


@pytest.mark.parametrize("match", [False, True])
def test_every_channel_has_its_width_and_its_moments(match: bool) -> None:
    widths = torch.tensor([2, 4, 6, 4])
    student = student_of(AllocatedFakeQuantize, widths=widths, match=match)
    weight = float_weight(student[2]).detach()
    quantized = student[2].weight.detach().double().flatten(1)
    rows = weight.double().flatten(1)
    for channel, bits in enumerate(widths.tolist()):
        row = rows[channel : channel + 1]
        expected = rounded(row, bits)
        if match:
            centered = expected - expected.mean()
            expected = centered * row.std(correction=0) / expected.std(correction=0) + row.mean()
        torch.testing.assert_close(quantized[channel : channel + 1], expected, rtol=1e-5, atol=1e-6)
    record = audit(student).records[1]
    assert record.stored_bits == 4
    codes = sum(-(-54 * b * n // 8) for b, n in ((2, 1), (4, 2), (6, 1)))
    levels = 4 * 2 * 4  # two clips a channel
    assert record.stored_bytes == codes + levels + 4 + (32 if match else 0)


@pytest.mark.parametrize("spec", [SPEC, PWLQSpec(4)], ids=str)
def test_piecewise_linear_grids_are_allocated_by_stored_bits(spec: QuantSpec) -> None:
    weight = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    quantizer = AllocatedFakeQuantize(spec, 0, weight, torch.tensor([4, 6]), match=False)
    assert quantizer.stored_bits == 5
    assert sorted(t.stored_bits for t in quantizer.tensors) == [4, 6]


def test_calibration_and_correction_work_with_them() -> None:
    student = student_of(ResidualFakeQuantize)
    x = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    teacher = twin(student)
    correct_bias(student, [x])
    inner = student[1](student[0](x)).detach()
    answer = nn.functional.conv2d(inner, float_weight(student[2]), teacher[2].bias)
    gap = (student[2](inner) - answer).mean((0, 2, 3))
    assert float(gap.abs().max()) < 1e-5, "the mean error at the student's own input is gone"
    original = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    original.load_state_dict(
        {
            "0.weight": float_weight(student[0]), "0.bias": teacher[0].bias,
            "2.weight": float_weight(student[2]), "2.bias": teacher[2].bias,
        }
    )  # fmt: skip
    torch.testing.assert_close(teacher(x), original(x))


def test_they_are_no_single_tensor() -> None:
    with pytest.raises(ValueError, match="layer '2' is put together from 2 quantized tensors"):
        quantized_tensors(student_of(ResidualFakeQuantize))
