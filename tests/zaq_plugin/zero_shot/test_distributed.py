"""Two gloo processes, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from zaq_plugin.zero_shot import ZeroShotConfig, ZeroShotLoader

CONFIG = ZeroShotConfig(
    steps=6,
    batch_size=4,
    images="mixed",
    distilled_images=16,
    distill_steps=2,
    latent_dim=8,
    generator_width=4,
    warmup_steps=2,
    student_steps=2,
    alpha=0.1,
)


def work(rank: int, port: int, student: nn.Module, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        wrapped = nn.parallel.DistributedDataParallel(student)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-2)
        loader = ZeroShotLoader(wrapped, (3, 8, 8), CONFIG)
        seen = []
        for images, targets in loader:
            seen.append(images)
            loss = loader.loss(wrapped(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loader.adversary is not None
        torch.save(
            {
                "student": student.state_dict(),
                "generator": [p.detach() for p in loader.adversary.generator.parameters()],
                "images": torch.stack(seen),
            },
            Path(folder) / f"{rank}.pt",
        )
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32" or not torch.distributed.is_gloo_available(), reason="needs gloo"
)
def test_each_rank_has_its_noise_and_all_have_one_model(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    student = make_student(tiny())
    torch.multiprocessing.start_processes(
        work, args=(port, student, str(tmp_path)), nprocs=2, start_method="fork"
    )
    zero, one = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert not torch.equal(zero["images"], one["images"])
    for name, value in zero["student"].items():
        torch.testing.assert_close(value, one["student"][name], rtol=0, atol=0)
    for mine, theirs in zip(zero["generator"], one["generator"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
