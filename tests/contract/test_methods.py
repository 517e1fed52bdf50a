"""Every method in every host: its weights are what the host's kernels run, bit for bit.

The methods are those of the registry, so a new one is under this test by being there.
"""

from __future__ import annotations

import pytest
import torch
from hosts import HOSTS, Way, sqnr
from networks import Block, Net, perturb
from torch import Tensor

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import quantize
from zaq_plugin.strategies import STRATEGIES, Request, apply
from zaq_plugin.strategies.compose import compose
from zaq_plugin.student import student_of

METHODS = [*STRATEGIES, "pwlq+gptq", "pwlq+adaround"]
ROUNDING = {"gptq", "pwlq+gptq"}
"""They choose other levels than the nearest, at any effort."""
NEAREST = {"rq", "omse", "pwlq"}
"""They choose none but the nearest."""
QUICK = {"rq", "omse", "gptq", "pwlq", "pwlq+gptq"}
CALIBRATED = [way for way in HOSTS if not way.train]


def _slow(name: str) -> object:
    return pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)


def network() -> Net:
    """All its layers are to be on fewer than 8 bits, the depthwise one, too."""
    torch.manual_seed(0)
    net = Net(10)
    net.block = Block(8, 16, depthwise=True)
    perturb(net)
    return net


@pytest.mark.parametrize("way", CALIBRATED, ids=lambda way: way.id)
@pytest.mark.parametrize("method", [_slow(name) for name in METHODS])
def test_the_levels_of_every_method_are_those_of_the_kernels(method: str, way: Way) -> None:
    net, images = network(), torch.randn(48, 3, 17, 17)
    request = Request(
        3,
        8,
        example_inputs=(images[:2],),
        images=images,
        synthetic=images,
        batch_size=16,
        effort=0.01,
        host=way.host,
        int8=True,
    )
    if any(stage.several_tensors for stage in compose(method).stages):
        if way.found().kernels == "int8":
            with pytest.raises(ValueError, match="no int8 kernel multiplies by"):
                apply(method, net, request)
        return  # simulation has no levels of one tensor to compare
    student = apply(method, net, request).model
    expected: dict[str, Tensor] = {}
    for name, layer in student_of(student).layers().items():
        spec, axis = layer.quantizer.spec, layer.axis
        assert spec.stored_bits == 3 or method == "zeroq-mp", name
        expected[name] = quantize(layer.weight, spec, axis, edges=layer.edges).dequantize()
        assert torch.equal(layer.quantized(), expected[name]), name
    with torch.no_grad():
        prepared = student(images[:16])
        converted = way.convert(student)
        answers = converted(images[:16])
    weights = way.converted_weights(converted)
    assert set(weights) == set(expected) == {"stem.0", *(f"block.{n}" for n in PARTS), "fc"}
    for name, values in expected.items():
        assert torch.equal(weights[name], values), name
    assert sqnr(prepared, answers) > 15, "the converted model computes what the student does"
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
