"""What zaq_litert leans on in LiteRT, fact by fact; if one fails, the tool has changed."""

import contextlib
from typing import Any

import pytest
from torch import Tensor, nn
from torch.fx import GraphModule


def test_without_quant_config_the_file_is_float(
    converted: GraphModule, images: Tensor, tmp_path: Any
) -> None:
    """And its answers agree all the same. Used by `zaq_litert._compat.convert`."""
    from zaq_litert._compat import convert
    from zaq_litert.lowering import unfolded
    from zaq_litert.reading import read, runner

    path = tmp_path / "net.tflite"
    path.write_bytes(convert(unfolded(converted), (images[:1],), quantized=False))
    file = read(path)
    assert file.integer_layers == 0
    output = runner(path)((images[:1],))[0]
    assert (output - converted(images[:1])).abs().max() < 0.01


def test_folded_weights_are_refused(converted: GraphModule, images: Tensor) -> None:
    """Used by `zaq_litert.lowering.unfolded`."""
    from zaq_litert._compat import convert

    with pytest.raises(Exception, match="."):
        convert(converted, (images[:1],), quantized=True)


def test_operators_have_names_and_tensors(exported: Any) -> None:
    """Used by `zaq_litert.reading.read`."""
    from zaq_litert._compat import operators
    from zaq_litert.reading import interpreter_of

    with_delegate = operators(interpreter_of(exported.path))
    without = operators(interpreter_of(exported.path, delegate=False))
    assert with_delegate[-1]["op_name"] == "DELEGATE"
    assert all(node["op_name"] != "DELEGATE" for node in without)
    assert {"op_name", "inputs", "outputs"} <= set(without[0])


class TwoPaddings(nn.Module):
    """Of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(nn.functional.pad(x, (0, 0, 2, 0)))
        return y + self.second(nn.functional.pad(x, (0, 0, 1, 1)))


def test_the_converter_forgets_how_a_value_lies(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Used by `zaq_litert._compat.layouts_stay_known`, which goes when this fails."""
    import zaq_litert
    from zaq_litert import _compat
    from zaq_litert.lowering import unfolded

    prepared = zaq_litert.prepare(TwoPaddings().eval(), (images[:1],))
    prepared(images)
    graph = unfolded(zaq_litert.convert(prepared))
    assert _compat.convert(graph, (images[:1],), quantized=True)[4:8] == b"TFL3"
    monkeypatch.setattr(_compat, "layouts_stay_known", contextlib.nullcontext)
    with pytest.raises(RuntimeError, match="to have 8 channels"):
        _compat.convert(graph, (images[:1],), quantized=True)
