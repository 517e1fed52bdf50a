"""Dense packing is exact, as small as it says, and refuses what does not fit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zaq_plugin.pwlq import entropy_bits, pack_codes, packed_size, unpack_codes


@given(st.integers(2, 12), st.data())
def test_round_trip_and_size(width, data):
    codes = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=70))
    tensor = torch.tensor(codes, dtype=torch.int32)
    packed = pack_codes(tensor, width)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_size(len(codes), width) == math.ceil(len(codes) * width / 8)
    assert unpack_codes(packed, width, len(codes)).tolist() == codes
    # An independent reading: one long integer, least significant bit first.
    whole = sum(code << (i * width) for i, code in enumerate(codes))
    assert bytes(packed.tolist()) == whole.to_bytes(packed.numel(), "little")


def test_errors():
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 15\] to fit 4 bits; got 0 to 16"):
        pack_codes(torch.tensor([0, 16]), 4)
    with pytest.raises(ValueError, match="to fit 4 bits; got -1 to 0"):
        pack_codes(torch.tensor([0, -1]), 4)
    with pytest.raises(TypeError, match=r"codes must be an integer tensor; got torch\.float32"):
        pack_codes(torch.tensor([1.0]), 4)
    with pytest.raises(ValueError, match="width must be from 1 to 16 bits; got 17"):
        pack_codes(torch.tensor([1]), 17)
    with pytest.raises(ValueError, match="8 codes of 5 bits take 5 bytes; got 4"):
        unpack_codes(torch.zeros(4, dtype=torch.uint8), 5, 8)
    with pytest.raises(TypeError, match=r"packed codes must be uint8; got torch\.int32"):
        unpack_codes(torch.zeros(5, dtype=torch.int32), 5, 8)


def test_entropy():
    assert entropy_bits(torch.tensor([0, 1, 2, 3]), 4) == pytest.approx(2.0)
    assert entropy_bits(torch.zeros(9, dtype=torch.uint8), 4) == 0.0
    assert entropy_bits(torch.tensor([0, 0, 0, 1]), 2) == pytest.approx(
        -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    )
