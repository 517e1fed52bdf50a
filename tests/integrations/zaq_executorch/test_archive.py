"""Archives of `.pte` files."""

from pathlib import Path
from typing import Any

from device_tools import check_archive
from torch.fx import GraphModule


def test_there_and_back(exported: Any, converted: GraphModule, tmp_path: Path) -> None:
    check_archive(Path(exported.path), converted, tmp_path)
