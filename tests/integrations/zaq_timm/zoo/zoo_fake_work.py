"""Work for the pool's tests that needs no torch: what a worker may do, and a run of such work.

python zoo_fake_work.py OUT MODELS JOBS
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from zaq_timm.zoo.pool import Task  # noqa: E402
from zaq_timm.zoo.runner import run  # noqa: E402
from zaq_timm.zoo.worker import Limits  # noqa: E402


@dataclass(frozen=True)
class FakePlan:
    """So many models, each done by one function of this module."""

    models: tuple[str, ...]
    function: str = "digest"
    settings: str = "same"

    @property
    def keys(self) -> list[str]:
        return list(self.models)

    @property
    def shared(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def task(self, key: str, folder: Path) -> Task:
        return Task(key, f"zoo_fake_work:{self.function}", {"name": key, "batch": 8}, folder)


def digest(payload: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    """A result that depends on the model alone, in three steps with a file."""
    value = payload["name"]
    for step in range(3):
        value = hashlib.sha256(value.encode()).hexdigest()
        (folder / "steps.txt").write_text(value * (step + 1))
        report("hashing", step + 1, 3)
        time.sleep(0.01)
    return {"value": value, "measured": {"seconds": 0.0}}


def hang(payload: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    """Never ends, and has a child that does not either."""
    child = subprocess.Popen(["sleep", "600"])
    (folder.parent / f"child-of-{payload['name']}").write_text(str(child.pid))
    while True:
        time.sleep(1)


def crash(payload: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def fail(payload: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    raise ValueError("this model\nis odd")


def leave_out(payload: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    from zaq_timm.zoo.errors import LeftOut

    raise LeftOut("it has no weights")


def eat(payload: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    """Takes 100 MB for each image of a batch, in small pieces, and says how it went."""
    blocks = [bytearray(os.urandom(1000)) * 1000 for _ in range(100 * payload["batch"])]
    time.sleep(1.5)  # long enough to be seen
    return {"batch": payload["batch"], "held": len(blocks)}


def too_much(payload: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    if payload["batch"] > 2:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried too much")
    return {"batch": payload["batch"]}


def talk(payload: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    """Prints, which must not disturb the progress that goes over standard output."""
    print("a library says something")
    os.write(1, b"and so does C\n")
    report("talking", 1, 2)
    threads = os.environ["OMP_NUM_THREADS"]
    return {"threads": threads, "group": os.getpgid(0)}


if __name__ == "__main__":
    names = tuple(f"model-{i}" for i in range(int(sys.argv[2])))
    run(FakePlan(names), Path(sys.argv[1]), jobs=int(sys.argv[3]), limits=Limits(), quiet=True)
