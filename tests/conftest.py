"""Settings for the whole test run: few threads, and hypothesis examples that do not time out."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from processor import KERNELS_ARE_EXACT

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares int8 kernels with exact arithmetic needs a processor whose kernels are."""
    if KERNELS_ARE_EXACT:
        return
    reason = "this x86 processor has no VNNI: int8 kernels of all hosts saturate at 16 bits on it"
    for item in items:
        if item.get_closest_marker("exact_kernels"):
            item.add_marker(pytest.mark.skip(reason=reason))
