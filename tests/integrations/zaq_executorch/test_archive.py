"""Archives of `.pte` files."""

from pathlib import Path
from typing import Any

import pytest
from torch.fx import GraphModule

from zaq_plugin import archive


def test_there_and_back(exported: Any, converted: GraphModule, tmp_path: Path) -> None:
    """Every int8 weight of the graph, and not a byte more, is coded."""
    data = Path(exported.path).read_bytes()
    told = archive.pack(exported.path, tmp_path / "net.zaq")
    weights = [
        w for w in converted.state_dict().values() if w.ndim > 1 and not w.is_floating_point()
    ]
    assert told.coded + told.integers == sum(w.numel() for w in weights)
    assert told.coded > 0.9 * told.integers
    assert told.bytes < told.zipped_bytes < told.file_bytes == len(data)
    assert archive.unpack(told.path, tmp_path / "net.pte") == len(data)
    assert (tmp_path / "net.pte").read_bytes() == data


def test_a_damaged_file_is_not_packed(exported: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pte"
    path.write_bytes(Path(exported.path).read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"net.pte: "):
        archive.pack(path)
    assert list(tmp_path.iterdir()) == [path]
