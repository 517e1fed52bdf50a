"""What `verify` sees in a file: every kind of wrong file has its own words."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from device_tools import with_another_weight
from torch import Tensor, nn
from torch.fx import GraphModule


@pytest.mark.slow
def test_a_good_file(exported: Any, images: Tensor) -> None:
    import zaq_executorch

    verdict = zaq_executorch.verify(exported.path, exported.model, images).require()
    assert (verdict.integer_layers, verdict.float_layers, verdict.weights) == (5, 0, 5)
    assert (verdict.batch, verdict.dynamic) == (4, True)
    assert verdict.error <= verdict.tolerance
    assert verdict.agreement == 1
    assert "OK under ExecuTorch with XNNPACK, batches up to 4" in str(verdict)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 16, 40])
def test_it_runs_at_its_bound(
    batch: int, converted: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    """16 is where torch's own bound for convolutions would leave a single size."""
    import zaq_executorch
    from zaq_executorch.reading import runner

    path = tmp_path / "net.pte"
    exported = zaq_executorch.export(converted, (images[:1],), path, batch=batch)
    assert exported.batch in (batch, batch + (batch == 16))
    zaq_executorch.verify(path, exported.model, images).require()
    run = runner(path)
    for size in {1, (batch + 1) // 2, batch} if batch > 1 else {1}:
        x = images.repeat(6, 1, 1, 1)[:size]
        assert run((x,))[0].shape == (size, 10)


def test_a_weight_that_differs_is_named(exported: Any, images: Tensor) -> None:
    import zaq_executorch

    other = with_another_weight(exported.model)
    verdict = zaq_executorch.verify(exported.path, other, images)
    assert any("block.conv1: its weight is not in the file; the nearest differs in 1 int" in p
               for p in verdict.problems)  # fmt: skip
    with pytest.raises(ValueError, match="NOT OK"):
        verdict.require()


def test_a_model_that_computes_something_else(exported: Any, images: Tensor) -> None:
    import zaq_executorch

    other = copy.deepcopy(exported.model)
    with torch.no_grad():
        for _, parameter in other.named_parameters():
            if parameter.shape == (10,):
                parameter += 1
    (problem,) = zaq_executorch.verify(exported.path, other, images).problems[-1:]
    assert "an output differs by" in problem


def test_a_float_file_never_passes(
    net: nn.Module, exported: Any, images: Tensor, tmp_path: Path
) -> None:
    """Its outputs agree, and nothing of it is quantized."""
    import zaq_executorch
    from zaq_executorch.lowering import lower

    path = tmp_path / "float.pte"
    graph = torch.export.export(net, (images[:1],)).module()
    path.write_bytes(lower(graph, (images[:1],), None))
    verdict = zaq_executorch.verify(path, exported.model, images)
    assert verdict.integer_layers == 0
    assert verdict.float_layers == 5
    assert "no layer runs in integers: nothing in this file is quantized." in verdict.problems


@pytest.mark.parametrize("damage", ["cut", "text", "header"])
def test_damaged_files(damage: str, exported: Any, images: Tensor, tmp_path: Path) -> None:
    import zaq_executorch

    data = Path(exported.path).read_bytes()
    path = tmp_path / "damaged.pte"
    wrong = {"cut": data[: len(data) // 2], "text": b"no program at all", "header": b"\0" * 64}
    path.write_bytes(wrong[damage])
    verdict = zaq_executorch.verify(path, exported.model, images)
    assert len(verdict.problems) == 1
    assert str(path) in verdict.problems[0]


def test_what_is_no_graph_is_refused(net: nn.Module, exported: Any, images: Tensor) -> None:
    import zaq_executorch

    with pytest.raises(TypeError, match=r"export\(...\).model; got Net"):
        zaq_executorch.verify(exported.path, net, images)
    with pytest.raises(FileNotFoundError):
        zaq_executorch.verify("nowhere.pte", exported.model, images)


class OneDimensional(nn.Module):
    """Convolutions over rows: XNNPACK has them as such over images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3)
        self.single, self.wide = nn.Conv1d(3, 1, 1), nn.Conv1d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack(self.first(x).chunk(3, 1), 1).flatten(2)
        return self.wide(self.single(x).reshape(x.shape[0], 4, -1))


def test_weights_of_one_dimensional_convolutions_are_found(tmp_path: Path) -> None:
    import zaq_executorch

    torch.manual_seed(0)
    model, images = OneDimensional().eval(), torch.randn(8, 3, 12, 12)
    path = tmp_path / "net.pte"
    made = zaq_executorch.export(model, (images[:1],), path, calibration=[images], method="pwlq")
    assert zaq_executorch.verify(path, made.model, images).require().weights == 3
