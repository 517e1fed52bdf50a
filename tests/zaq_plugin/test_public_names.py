"""The names that users type, and the one that is both a function and a module."""

import subprocess
import sys

import pytest
import torch

import zaq_plugin


def test_every_public_name_is_there() -> None:
    for name in zaq_plugin.__all__:
        assert getattr(zaq_plugin, name) is not None


@pytest.mark.parametrize(
    "first",
    [
        "from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize",
        "from zaq_plugin import fake_quantize",
        "import zaq_plugin.ptq",
    ],
)
def test_fake_quantize_is_the_function_whatever_is_imported_first(first: str) -> None:
    code = (
        f"{first}\nfrom zaq_plugin.fake_quantize import ActivationFakeQuantize\n"
        "import zaq_plugin, zaq_plugin.pwlq\n"
        "print(zaq_plugin.fake_quantize is zaq_plugin.pwlq.fake_quantize)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "True\n"


def test_the_readmes_first_lines_work() -> None:
    w = torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    q = zaq_plugin.quantize(w, zaq_plugin.PWLQSpec(bits=4))
    assert (q.mac_bits, q.stored_bits) == (4, 5)
    assert q.dequantize().shape == w.shape
    assert q.integer_weight().dtype == torch.int8
