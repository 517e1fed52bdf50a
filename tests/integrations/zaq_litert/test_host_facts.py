"""What zaq_litert leans on in LiteRT, fact by fact; if one fails, the tool has changed."""

from typing import Any

import pytest
from torch import Tensor
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
