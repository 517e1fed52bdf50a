"""One network, quantized and exported once for all tests; skipped where LiteRT is missing."""

from pathlib import Path
from typing import Any

import device_tools
import pytest
from torch import Tensor, nn
from torch.fx import GraphModule

WHY = "litert-torch is not installed: pip install 'zaq_plugin[litert]'"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    device_tools.skip_without("litert_torch", WHY, items, Path(__file__).parent)


@pytest.fixture(scope="session")
def images() -> Tensor:
    return device_tools.eight_images()


@pytest.fixture(scope="session")
def net() -> nn.Module:
    return device_tools.network()


@pytest.fixture(scope="session")
def converted(net: nn.Module, images: Tensor) -> GraphModule:
    import zaq_litert

    return device_tools.calibrated(zaq_litert, net, images)


@pytest.fixture(scope="session")
def exported(converted: GraphModule, images: Tensor, tmp_path_factory: Any) -> Any:
    import zaq_litert

    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    return zaq_litert.export(converted, (images[:1],), path)
