"""One network, quantized and exported once for all tests; skipped where LiteRT is missing."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Net, perturb
from torch import Tensor, nn
from torch.fx import GraphModule

WHY = "litert-torch is not installed: pip install 'zaq_plugin[litert]'"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_spec("litert_torch") is None:
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
    import zaq_litert
    import zaq_pt2e

    prepared = zaq_litert.prepare(net, (images[:2],))
    zaq_pt2e.calibrate(prepared, [images])
    return zaq_litert.convert(prepared)


@pytest.fixture(scope="session")
def exported(converted: GraphModule, images: Tensor, tmp_path_factory: Any) -> Any:
    import zaq_litert

    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    return zaq_litert.export(converted, (images[:1],), path)
