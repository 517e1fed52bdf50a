"""What each of two ranks runs: two optimizer steps on images of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from zaq_timm.zoo.ranks import averaged_gradients, rank_and_size


def images_of(rank: int) -> list[Tensor]:
    """Two batches, other ones for each rank."""
    return list(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(rank)))


def trained(batches: list[list[Tensor]]) -> list[Tensor]:
    """Adam on the mean over lists of batches, one batch of each list a step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in zip(*batches, strict=True):
        optimizer.zero_grad()
        torch.stack([model(x).square().mean() for x in step]).mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with rank_and_size(2) as (rank, size):
        with averaged_gradients():
            inside = trained([images_of(rank)])
        outside = trained([images_of(rank)])
        content = {"size": size, "inside": [p.tolist() for p in inside]}
        content["outside"] = [p.tolist() for p in outside]
        Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(content))
