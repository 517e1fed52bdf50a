"""One network, quantized and exported once for all tests; skipped where ExecuTorch is missing."""

from pathlib import Path
from typing import Any

import device_tools
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

WHY = "executorch is not installed: pip install 'zaq_plugin[executorch]'"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    device_tools.skip_without("executorch", WHY, items, Path(__file__).parent)


@pytest.fixture(scope="session")
def images() -> Tensor:
    return device_tools.eight_images()


@pytest.fixture(scope="session")
def net() -> nn.Module:
    return device_tools.network()


@pytest.fixture(scope="session")
def converted(net: nn.Module, images: Tensor) -> GraphModule:
    import zaq_executorch

    return device_tools.calibrated(zaq_executorch, net, images)


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
