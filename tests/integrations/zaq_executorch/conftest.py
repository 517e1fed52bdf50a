"""One network, quantized and exported once for all tests; skipped where ExecuTorch is missing."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Net, perturb
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

WHY = "executorch is not installed: pip install 'zaq_plugin[executorch]'"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_spec("executorch") is None:
        here = Path(__file__).parent
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.randn(8, 3, 17, 17, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def net() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Net(10))


@pytest.fixture(scope="session")
def converted(net: nn.Module, images: Tensor) -> GraphModule:
    """By the host, calibrated, not rounded anew: its weights have the format's own levels."""
    import zaq_executorch
    import zaq_pt2e

    prepared = zaq_executorch.prepare(net, (images[:2],))
    zaq_pt2e.calibrate(prepared, [images])
    return zaq_executorch.convert(prepared)


@pytest.fixture(scope="session")
def exported(converted: GraphModule, images: Tensor, tmp_path_factory: Any) -> Any:
    """For batches up to 4."""
    import zaq_executorch

    path = tmp_path_factory.mktemp("pte") / "net.pte"
    return zaq_executorch.export(converted, (images[:1],), path, batch=4)


@pytest.fixture(scope="session")
def uint8(net: nn.Module, images: Tensor) -> GraphModule:
    """By the plain PT2E route: uint8 activations, a float output."""
    import zaq_pt2e

    shapes = ({0: torch.export.Dim("batch", min=1)},)
    graph = torch.export.export(net, (images,), dynamic_shapes=shapes).module()
    prepared = prepare_pt2e(graph, zaq_pt2e.PWLQQuantizer())
    zaq_pt2e.calibrate(prepared, [images])
    return convert_pt2e(prepared)
