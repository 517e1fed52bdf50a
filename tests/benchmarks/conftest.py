"""A made-up data folder for the accuracy benchmarks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR folder with random weights, 40 test images and 1,100 training images."""
    from benchmarks.data.tasks import ResNet20

    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10").mkdir()
    torch.manual_seed(0)
    save_file(ResNet20().state_dict(), folder / "cifar10" / "resnet20.safetensors")
    rng = np.random.default_rng(0)
    for name, count in (("test", 40), ("train", 1100)):
        np.savez(
            folder / "cifar10" / f"{name}.npz",
            images=rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            labels=rng.integers(0, 10, count),
        )
    return folder
