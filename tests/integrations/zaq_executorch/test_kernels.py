"""Global average pools in files that take batches of several sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule


class Squeeze(nn.Module):
    """A pool in the middle of the network, and a mean that keeps its axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.gate = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        x = x + self.gate(x.mean((2, 3), keepdim=True)).relu()
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Samples that differ: the fault leaves the first ones' values where later ones' belong."""
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return x * torch.arange(1, 5).view(4, 1, 1, 1)


@pytest.fixture(scope="module")
def graph(images: Tensor) -> GraphModule:
    import zaq_executorch
    import zaq_pt2e
    from zaq_pt2e.device.making import int8_graph

    torch.manual_seed(0)
    prepared = zaq_executorch.prepare(Squeeze().eval(), (images[:2],))
    zaq_pt2e.calibrate(prepared, [images])
    return int8_graph(zaq_executorch.convert(prepared), None, "test")


@pytest.mark.slow
def test_a_larger_batch_after_a_smaller_one(
    graph: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    import zaq_executorch
    from zaq_executorch.reading import runner

    path = tmp_path / "net.pte"
    exported = zaq_executorch.export(graph, (images[:1],), path, batch=4)
    assert "XNNGlobalAvgPooling2d" not in exported.operators
    assert zaq_executorch.verify(path, exported.model, images).require().weights == 3
    run = runner(path)
    alone = [run((x[None],))[0] for x in images]
    torch.testing.assert_close(run((images,))[0], torch.cat(alone), rtol=0, atol=1e-6)


def test_one_sample_keeps_the_delegates_pool(
    graph: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    import zaq_executorch

    exported = zaq_executorch.export(graph, (images[:1],), tmp_path / "net.pte")
    assert exported.operators["XNNGlobalAvgPooling2d"] == 2


def test_the_rewritten_graph_computes_the_same(graph: GraphModule, images: Tensor) -> None:
    from zaq_executorch.kernels import means_outside

    rewritten = means_outside(graph)
    assert torch.equal(rewritten(images), graph(images))
    names = {str(node.target) for node in rewritten.graph.nodes}
    assert "aten.adaptive_avg_pool2d.default" not in names
    assert "aten.adaptive_avg_pool2d.default" in {str(node.target) for node in graph.graph.nodes}


@pytest.mark.slow
def test_why_the_delegates_pool_grows_wrongly(tmp_path: Path) -> None:
    """The host's fact; once it holds no longer, `means_outside` can go. Not every network shows it.

    The first file begins with four samples, the second with one.
    """
    import zaq_executorch
    import zaq_pt2e
    from zaq_executorch.kernels import means_outside
    from zaq_executorch.lowering import lower
    from zaq_executorch.reading import runner

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10)).eval()
    x = torch.randn(8, 3, 32, 32)
    prepared = zaq_executorch.prepare(model, (x[:1],))
    zaq_pt2e.calibrate(prepared, [x])
    graph, path = zaq_executorch.convert(prepared), tmp_path / "net.pte"
    shapes, last = ({0: torch.export.Dim("batch", min=1, max=4)},), x[4:].contiguous()
    expected = graph(last)

    def apart(one_first: bool) -> float:
        run = runner(path)
        run((x[:1].contiguous() if one_first else x[:4].contiguous(),))
        return float((run((last,))[0] - expected).abs().max())

    step = 0.01
    path.write_bytes(lower(graph, (x[:4],), shapes))
    assert apart(one_first=False) < step < apart(one_first=True)
    path.write_bytes(lower(means_outside(graph), (x[:4],), shapes))
    assert apart(one_first=False) < step > apart(one_first=True)
