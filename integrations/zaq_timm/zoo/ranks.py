"""One model on several processes: what torchrun's ranks share while zero-shot training runs.

Every rank does the same work on the same images but for the training batches, each rank's own; the
gradients' mean is what each takes a step along, so that all end with one model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook


@contextmanager
def rank_and_size(ranks: int) -> Iterator[tuple[int, int]]:
    """Joins the process group that torchrun set up; nothing for one process.

    Yields:
        This process's rank, and how many there are.
    """
    if ranks <= 1:
        yield 0, 1
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend)
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def averaged_gradients() -> Iterator[None]:
    """While it lasts, every optimizer's step is along the ranks' mean gradient.

    Where ranks compute the same (images, reconstruction), the mean changes nothing.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield
        return
    handle = register_optimizer_step_pre_hook(_average)
    try:
        yield
    finally:
        handle.remove()


def _average(optimizer: Any, args: Any, kwargs: Any) -> None:
    size = torch.distributed.get_world_size()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= size
