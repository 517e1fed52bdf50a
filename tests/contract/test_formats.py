"""Formats other than the first two in every host: the levels chosen are those that kernels have.

Those of the table of names, so that a new one is under this test by being there.
"""

from __future__ import annotations

import pytest
import torch
from hosts import HOSTS, Way, sqnr
from networks import Block, Net, perturb

from zaq_plugin.pwlq import quantize
from zaq_plugin.pwlq.names import FORMATS, family
from zaq_plugin.strategies import Request, apply
from zaq_plugin.student import student_of

OTHERS = [family(kind) for kind in FORMATS if kind not in ("pwlq", "uniform")]
CALIBRATED = [way for way in HOSTS if not way.train]


def network() -> Net:
    torch.manual_seed(0)
    net = Net(10)
    net.block = Block(8, 16, depthwise=True)
    perturb(net)
    return net


@pytest.mark.parametrize("way", CALIBRATED, ids=lambda way: way.id)
@pytest.mark.parametrize("levels", OTHERS)
@pytest.mark.parametrize(
    "method", ["omse", "pwlq+gptq", pytest.param("pwlq+adaround", marks=pytest.mark.slow)]
)
def test_levels_of_every_format_are_those_of_the_kernels(
    levels: str, method: str, way: Way
) -> None:
    net, images = network(), torch.randn(48, 3, 17, 17)
    request = Request(
        4,
        8,
        levels=levels,
        example_inputs=(images[:2],),
        images=images,
        synthetic=images,
        batch_size=16,
        effort=0.01,
        host=way.host,
        int8=True,
    )
    student = apply(method, net, request).model
    expected = {}
    for name, layer in student_of(student).layers().items():
        spec, axis = layer.quantizer.spec, layer.axis
        assert spec.family == levels, name
        q = quantize(layer.weight, spec, axis, edges=layer.edges)
        assert torch.equal(layer.quantized(), q.dequantize()), name
        expected[name] = q.dequantize()
    with torch.no_grad():
        prepared = student(images[:16])
        converted = way.convert(student)
        answers = converted(images[:16])
    found = way.converted_weights(converted)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert torch.equal(found[name], values), name
    assert sqnr(prepared, answers) > 15


@pytest.mark.parametrize("levels", OTHERS)
def test_what_makes_no_sense_is_refused_before_anything_runs(levels: str) -> None:
    net, images = network(), torch.randn(8, 3, 17, 17)
    request = Request(4, 8, levels=levels, example_inputs=(images[:2],), images=images)
    with pytest.raises(ValueError, match="are those of least squared error"):
        apply("rq", net, request)
