"""From models to `.pte` files that hold the format's levels."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from device_tools import check_integers_and_scales
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_plugin.pwlq import PWLQSpec


def test_the_file_holds_the_formats_integers_and_scales(
    exported: Any, net: nn.Module, images: Tensor
) -> None:
    from zaq_executorch.reading import read

    check_integers_and_scales(read(exported.path), net, images)


def test_what_export_tells(exported: Any, tmp_path: Path) -> None:
    path = Path(exported.path)
    assert exported.bytes == path.stat().st_size
    with zipfile.ZipFile(tmp_path / "net.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        out.write(path, "net.pte")
        assert abs(out.infolist()[0].compress_size - exported.zipped_bytes) < 20
    assert (exported.batch, exported.dynamic) == (4, True)
    assert all(record.quantized for record in exported.layers)
    assert exported.operators["XNNConv2d"] == 3
    assert exported.operators["XNNDepthwiseConv2d"] == exported.operators["XNNFullyConnected"] == 1
    assert str(exported).endswith("5 of 5 layers in int8; batches up to 4")


def test_activations_move_to_int8_and_change_nothing(uint8: GraphModule, images: Tensor) -> None:
    from zaq_pt2e.device.signed import to_int8

    moved = to_int8(uint8, "test")
    assert torch.equal(moved(images), uint8(images))
    kinds = {n.args[5] for n in moved.graph.nodes if "quantize_per_tensor" in str(n.target)}
    assert kinds == {torch.int8}
    again = to_int8(moved, "test")
    assert [n.args[1:] for n in again.graph.nodes if "quantize_per_tensor" in str(n.target)] == [
        n.args[1:] for n in moved.graph.nodes if "quantize_per_tensor" in str(n.target)
    ]


@pytest.mark.slow
def test_a_model_of_the_pt2e_route(uint8: GraphModule, images: Tensor, tmp_path: Path) -> None:
    """Its output has no grid, without which XNNPACK would leave out the last layer."""
    import zaq_executorch

    path = tmp_path / "net.pte"
    with pytest.raises(ValueError, match="the output of fc has no grid.*Pass calibration=batches"):
        zaq_executorch.export(uint8, (images[:1],), path)
    assert not list(tmp_path.iterdir())
    exported = zaq_executorch.export(uint8, (images[:1],), path, calibration=[images])
    assert zaq_executorch.verify(path, exported.model, images).require().weights == 5
    step = (uint8(images).max() - uint8(images).min()) / 255
    assert (exported.model(images) - uint8(images)).abs().max() <= 0.51 * step + 1e-6
    assert zaq_executorch.verify(path, uint8, images).ok


@pytest.mark.slow
def test_a_float_model_without_data(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    import zaq_executorch

    path = tmp_path / "net.pte"
    few = {"synthetic_count": 32, "effort": 0.05}
    exported = zaq_executorch.export(net, (images[:1],), path, stored_bits=6, **few)
    assert {record.stored_bits for record in exported.layers} == {6}
    assert zaq_executorch.verify(path, exported.model, images).require().agreement >= 0.8


def test_narrow_activations_are_refused_before_anything_runs(
    net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    import zaq_executorch
    import zaq_pt2e

    graph = torch.export.export(net, (images,)).module()
    quantizer = zaq_pt2e.PWLQQuantizer(overrides={"block.conv2": (PWLQSpec(), 4)})
    prepared = prepare_pt2e(graph, quantizer)
    zaq_pt2e.calibrate(prepared, [images])
    text = r"executorch: block.conv2 takes 4-bit activations \(0 to 15\).*with activations=8"
    with pytest.raises(ValueError, match=text):
        zaq_executorch.export(convert_pt2e(prepared), (images[:1],), tmp_path / "net.pte")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(
    net: nn.Module, converted: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    import zaq_executorch

    path, one = tmp_path / "net.pte", (images[:1],)
    with pytest.raises(ValueError, match="batch must be at least 1; got 0"):
        zaq_executorch.export(converted, one, path, batch=0)
    with pytest.raises(TypeError, match="batch must be a whole number; got 2.0"):
        zaq_executorch.export(converted, one, path, batch=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="example_inputs must be a tuple of tensors.*got Tensor"):
        zaq_executorch.export(converted, images, path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prepared, not converted"):
        zaq_executorch.export(zaq_executorch.prepare(net, one), one, path)
    with pytest.raises(ValueError, match="method and its options are for a float model"):
        zaq_executorch.export(converted, one, path, method="pwlq")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"activations": 3}, r"no option 'activations'\. Known are adapter, .*of 8 bits, always"),
        ({"activation_bits": 3}, r"no option 'activation_bits'\. Known are"),
        ({"stored_bit": 5}, r"no option 'stored_bit'\. Did you mean stored_bits\?"),
    ],
)
def test_options_that_do_not_exist(
    net: nn.Module, images: Tensor, tmp_path: Path, option: dict[str, int], text: str
) -> None:
    import zaq_executorch

    with pytest.raises(TypeError, match=f"executorch: there is {text}"):
        zaq_executorch.export(net, (images[:1],), tmp_path / "n", calibration=[images], **option)
    assert not list(tmp_path.iterdir())


class Cubes(nn.Module):
    """XNNPACK has no three-dimensional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.cube = nn.Conv3d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.cube(x).mean((2, 3, 4)))


def test_a_layer_outside_the_delegate_is_named(tmp_path: Path) -> None:
    import zaq_executorch
    import zaq_pt2e

    x = torch.randn(2, 3, 6, 6, 6)
    prepared = zaq_executorch.prepare(Cubes().eval(), (x,))
    zaq_pt2e.calibrate(prepared, [x])
    text = "XNNPACK has left 1 layers outside its delegate.*convolution.* of cube, output .1, 4, 4"
    with pytest.raises(ValueError, match=text):
        zaq_executorch.export(zaq_executorch.convert(prepared), (x[:1],), tmp_path / "net.pte")
    assert not list(tmp_path.iterdir())


class Sliced(nn.Module):
    """As in GhostNet: a slice, of all there is, that is averaged and multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.gate, self.last = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first(x), self.second(x)], 1)[:, :12, :, :]
        return self.last(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())


def test_a_slice_with_two_readers(tmp_path: Path) -> None:
    import zaq_executorch

    torch.manual_seed(0)
    model, images = Sliced().eval(), torch.randn(8, 3, 12, 12)
    made = zaq_executorch.export(
        model, (images[:1],), tmp_path / "net.pte", calibration=[images], method="pwlq"
    )
    assert zaq_executorch.verify(made.path, made.model, images).require().weights == 4
    with torch.no_grad():
        expected, answers = model(images), torch.cat([made.model(x) for x in images.split(1)])
    noise = (answers - expected).square().sum() / expected.square().sum()
    assert 10 * torch.log10(noise) < -22  # four MAC bits


class MovedBetweenGrids(nn.Module):
    """Values that change their order between a product and a sum, and a head of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)
        self.norm = nn.LayerNorm(8)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.first(x).permute(0, 2, 3, 1))
        x = torch.cat([(self.mix(x) * 9).permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)], 1)
        return x, self.head(x[:, :8].mean((2, 3)))


def test_grids_as_the_kernels_want_them(tmp_path: Path) -> None:
    """A file with a finer step of the zeros, or other grids around the order, did not load."""
    import zaq_executorch

    torch.manual_seed(0)
    model, images = MovedBetweenGrids().eval(), torch.randn(8, 3, 12, 12)
    path = tmp_path / "net.pte"
    made = zaq_executorch.export(model, (images[:1],), path, calibration=[images], method="pwlq")
    assert zaq_executorch.verify(path, made.model, images).require().weights == 3
