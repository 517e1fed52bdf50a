"""The names that users type, and the one that is both a function and a module."""

import subprocess
import sys

import pytest
import torch

import zaq_plugin


def test_every_public_name_is_there() -> None:
    for name in zaq_plugin.__all__:
        assert getattr(zaq_plugin, name) is not None


def test_names_found_later_are_those_of_their_parts_and_load_nothing_before() -> None:
    from zaq_plugin import ptq, strategies, zero_shot

    for part, names in (
        (ptq, ("simulate", "calibrate", "correct_bias", "audit", "fold_batch_norm")),
        (strategies, ("apply", "Request")),
        (zero_shot, ("zero_shot_finetune", "ZeroShotConfig", "ZeroShotLoader")),
    ):
        for name in names:
            assert getattr(zaq_plugin, name) is getattr(part, name)
            assert name in zaq_plugin.__all__
            assert name in dir(zaq_plugin)
    assert set(zaq_plugin._LATER) <= set(zaq_plugin.__all__)
    with pytest.raises(AttributeError, match="module 'zaq_plugin' has no attribute 'quantise'"):
        zaq_plugin.quantise  # noqa: B018
    code = "import sys, zaq_plugin; print(*[n for n in sys.modules if n.startswith('zaq_plugin.')])"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    parts = {name.split(".")[1] for name in loaded}
    assert "pwlq" in parts
    assert not parts & {"ptq", "strategies", "zero_shot"}


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
