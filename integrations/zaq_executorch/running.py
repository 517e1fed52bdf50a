"""Running a `.pte` file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from executorch.runtime import Runtime
from torch import Tensor

from zaq_executorch._compat import reset_threads
from zaq_pt2e.device.tolerance import Run


def runner(path: str | os.PathLike[str]) -> Run:
    """What runs a batch through a file.

    Raises:
        ValueError: ExecuTorch cannot load it, or, when it runs, run it.
    """
    try:
        method = Runtime.get().load_program(Path(path)).load_method("forward")
    except RuntimeError as error:
        raise ValueError(f"ExecuTorch cannot load it: {_first(error)}") from error
    assert method is not None

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        try:
            outputs = method.execute([x.contiguous() for x in inputs])
        except RuntimeError as error:
            raise ValueError(f"ExecuTorch cannot run it: {_first(error)}") from error
        return [torch.as_tensor(x).clone() for x in outputs]

    return run


def _first(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_thread() -> None:
    """Let XNNPACK compute in one thread from now on, in all files of this process."""
    reset_threads(1)
