"""Every method in every host: its weights are what the host's kernels run, bit for bit.

The methods are those of the registry, so a new one is under this test by being there.
"""

from __future__ import annotations

import pytest
import torch
from hosts import Way
from kernel_levels import CALIBRATED, check_levels, network, request_in
from networks import Net
from torch import Tensor

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import quantize
from zaq_plugin.strategies import STRATEGIES, apply
from zaq_plugin.strategies.compose import compose
from zaq_plugin.student import student_of

METHODS = [*STRATEGIES, "pwlq+gptq", "pwlq+adaround"]
ROUNDING = {"gptq", "pwlq+gptq"}
"""They choose other levels than the nearest, at any effort."""
NEAREST = {"rq", "omse", "pwlq"}
"""They choose none but the nearest."""
QUICK = {"rq", "omse", "gptq", "pwlq", "pwlq+gptq"}


def _slow(name: str) -> object:
    return pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("way", CALIBRATED, ids=lambda way: way.id)
@pytest.mark.parametrize("method", [_slow(name) for name in METHODS])
def test_the_levels_of_every_method_are_those_of_the_kernels(method: str, way: Way) -> None:
    net, images = network(), torch.randn(48, 3, 17, 17)
    request = request_in(way, images, 3)
    if any(stage.several_tensors for stage in compose(method).stages):
        if way.found().kernels == "int8":
            with pytest.raises(ValueError, match="no int8 kernel multiplies by"):
                apply(method, net, request)
        return  # simulation has no levels of one tensor to compare
    student = apply(method, net, request).model
    for name, layer in student_of(student).layers().items():
        assert layer.quantizer.spec.stored_bits == 3 or method == "zeroq-mp", name
    weights = check_levels(student, way, images)
    assert set(weights) == {"stem.0", *(f"block.{n}" for n in PARTS), "fc"}
    if method in ROUNDING | NEAREST:
        assert _moved(student, net, weights) == (method in ROUNDING)


PARTS = ("conv1", "conv2", "short.0")


def _moved(student: torch.nn.Module, net: Net, weights: dict[str, Tensor]) -> bool:
    """Whether some weight is not on the level nearest to the float one."""
    folded = fold_batch_norm(net)
    for name, layer in student_of(student).layers().items():
        weight = folded.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        nearest = quantize(weight, layer.quantizer.spec, layer.axis, edges=layer.edges)
        if not torch.equal(nearest.dequantize(), weights[name]):
            return True
    return False
