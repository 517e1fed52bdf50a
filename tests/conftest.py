"""Settings for the whole test run: few threads, and hypothesis examples that do not time out."""

import gc
import os

import host_caches
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile(
    "zaq",
    deadline=None,  # a shared machine's pauses are no finding
    derandomize=True,  # the same examples in every run
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", parent=settings.get_profile("zaq"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "zaq"))


def pytest_collection_finish() -> None:
    """All test files are imported now, and with them the hosts that have caches."""
    host_caches.install()
    gc.freeze()  # nothing of the hosts' modules is garbage
