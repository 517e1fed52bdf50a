"""From models to `.tflite` files that hold the format's levels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_tools import check_integers_and_scales, noise_of
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.student.host import Assignment, find_host


def test_the_file_holds_the_formats_integers_and_scales(
    exported: Any, net: nn.Module, images: Tensor
) -> None:
    from zaq_litert.reading import read

    check_integers_and_scales(read(exported.path), net, images)


def test_what_export_tells(exported: Any) -> None:
    assert exported.bytes == Path(exported.path).stat().st_size
    assert exported.batch == 1
    assert exported.operators["CONV_2D"] == 3
    assert exported.operators["QUANTIZE"] == exported.operators["DEQUANTIZE"] == 1
    assert str(exported).endswith("5 of 5 layers in int8; batches of 1")


def test_int8_in_and_outputs(
    exported: Any, converted: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    """The same answers as the file with float ones; grids as the graph has them."""
    import zaq_litert
    from zaq_litert.reading import interpreter_of, runner

    path = tmp_path / "net.tflite"
    int8_file = zaq_litert.export(converted, (images[:1],), path, interface="int8", batch=2)
    assert (int8_file.batch, int8_file.operators["QUANTIZE"]) == (2, 0)
    zaq_litert.verify(path, int8_file.model, images).require()
    interpreter = interpreter_of(path)
    (source,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert source["dtype"] is output["dtype"] is np.int8
    grids = [n.args[1:3] for n in converted.graph.nodes if "quantize_per_tensor" in str(n.target)]
    for place, (scale, zero) in ((source, grids[0]), (output, grids[-1])):
        assert place["quantization"] == (pytest.approx(scale, rel=1e-6), zero)
    first, second = runner(exported.path), runner(path)
    floats = torch.cat([first((x[None],))[0] for x in images[:2]])
    torch.testing.assert_close(floats, second((images[:2],))[0], rtol=0, atol=1e-6)


class Constants(nn.Module):
    """What transformers do with constants: a token, an embedding, a layer's scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 10, 8))
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.second(x) * self.scale


def test_int8_constants_of_sums_and_products(tmp_path: Path) -> None:
    import zaq_litert
    from zaq_litert.reading import runner

    torch.manual_seed(0)
    model, images = Constants().eval(), torch.randn(8, 3, 12, 12)
    made = zaq_litert.export(
        model, (images[:1],), tmp_path / "net.tflite", calibration=[images], method="pwlq"
    )
    checked = zaq_litert.verify(made.path, made.model, images).require()
    assert checked.weights == 2
    assert noise_of(runner(made.path), model, images) < -22  # four MAC bits


@pytest.mark.slow
def test_a_float_model_with_images(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    import zaq_litert

    path = tmp_path / "net.tflite"
    int8_file = zaq_litert.export(
        net, (images[:1],), path, calibration=[images], method="pwlq+gptq", stored_bits=4
    )
    assert {record.stored_bits for record in int8_file.layers} == {4}
    assert zaq_litert.verify(path, int8_file.model, images).require().weights == 5


def test_what_cannot_be_exported(
    net: nn.Module, converted: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    import zaq_litert

    path, one = tmp_path / "net.tflite", (images[:1],)
    with pytest.raises(ValueError, match="interface must be 'float' or 'int8'; got 'uint8'"):
        zaq_litert.export(converted, one, path, interface="uint8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="litert: batch must be at least 1; got 0"):
        zaq_litert.export(converted, one, path, batch=0)
    with pytest.raises(ValueError, match="litert: this model is prepared, not converted"):
        zaq_litert.export(zaq_litert.prepare(net, one), one, path)
    assert not list(tmp_path.iterdir())


def test_narrow_activations_are_refused() -> None:
    why = find_host("litert").why_not(Assignment(PWLQSpec(), 4))
    assert why is not None
    assert why.startswith("litert multiplies int8 by int8, and every layer's input has 4-bit")
