"""Two gloo processes, started by torchrun."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32" or not torch.distributed.is_gloo_available(), reason="needs gloo"
)
def test_each_rank_has_its_noise_and_all_have_one_model(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command = [sys.executable, *launch, f"--master-port={port}", str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    zero, one = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert not torch.equal(zero["images"], one["images"])
    for name, value in zero["student"].items():
        torch.testing.assert_close(value, one["student"][name], rtol=0, atol=0)
    for mine, theirs in zip(zero["generator"], one["generator"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
