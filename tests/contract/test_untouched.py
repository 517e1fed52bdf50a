"""Users' models and tensors are theirs, and the audit leaves nothing out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hosts import HOSTS, Way, assert_same, biases, every_host, ranges
from small_networks import ORDER, Plain, Residual, every_network, inputs, network, student_from
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, compensate_rounding, correct_bias
from zaq_plugin.reconstruction import ReconstructOptions, reconstruct
from zaq_plugin.student import student_of, twin


def facts_of(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that must not change."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "classes": {name: type(module) for name, module in model.named_modules()},
        "gradients": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "identities": {name: id(p) for name, p in model.named_parameters()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in model.named_modules()
        },
        "grads": {name: p.grad is None for name, p in model.named_parameters()},
    }


@every_host
@every_network
def test_the_users_model_is_not_touched(way: Way, kind: type[nn.Module]) -> None:
    model, x = network(kind), inputs(kind)
    next(model.parameters()).requires_grad_(False)
    before, output = facts_of(model), model(x).detach()
    batch = x.clone()
    student = way.prepare(model, (x[:2],))
    reference = twin(student)
    calibrate(student, [x])
    correct_bias(student, [x])
    compensate_rounding(student, [x], reference)
    state = {name: value.clone() for name, value in student.state_dict().items()}
    computed = student(x).detach()
    way.convert(student)
    after = facts_of(model)
    assert_same(before.pop("state"), after.pop("state"), 0)
    assert before == after
    assert torch.equal(model(x).detach(), output)
    assert torch.equal(batch, x)
    assert_same(state, student.state_dict(), 0)  # conversion makes a model of its own
    assert torch.equal(student(x).detach(), computed)


MEAN, DEVIATION = torch.tensor([0.2, -0.1, 0.1])[:, None, None], 1.5


class InPlace(Plain):
    """Normalises the tensor that it is given, in place."""

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(MEAN.to(x)).div_(DEVIATION)
        return super().forward(x)


class Chained(Plain):
    """The same, but goes on with what the operators return."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(MEAN.to(x)).div_(DEVIATION))


class OutOfPlace(Plain):
    """The same function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub(MEAN.to(x)).div(DEVIATION))


# NNCF's quantizers see what an operator returns, which a model that writes in place may not use.
WRITERS = [
    pytest.param(
        way,
        kind,
        id=f"{way.id}-{kind.__name__.lower()}",
        marks=[pytest.mark.slow] * (way.id == "pt2e-qat"),
    )
    for way in HOSTS
    for kind in (InPlace, Chained)
    if not (way.host == "nncf" and kind is InPlace)
]


@pytest.mark.parametrize(("way", "writer"), WRITERS)
def test_a_model_that_changes_its_input(way: Way, writer: type[nn.Module]) -> None:
    x = inputs(Plain)
    batch = x.clone()
    batches = list(batch.split([10, 6]))
    state = network(Plain).state_dict()
    results = []
    for kind in (writer, OutOfPlace):
        model = kind().eval()
        model.load_state_dict(state)
        student = way.prepare(model, (x[:2],))
        calibrate(student, batches)
        assert torch.equal(batch, x), "calibrate"
        correct_bias(student, batches)
        assert torch.equal(batch, x), "correct_bias"
        corrected = biases(student)
        teacher = twin(student)
        compensate_rounding(copy.deepcopy(student), batches, teacher)
        assert torch.equal(batch, x), "compensate_rounding"
        options = ReconstructOptions(iterations=2, batch_size=4)
        reconstruct(copy.deepcopy(student), teacher, batch, options)
        assert torch.equal(batch, x), "reconstruct"
        output = student(x.clone()).detach()
        results.append((list(ranges(student).values()), corrected, {"output": output}))
    (grids, corrected, output), (same_grids, same_corrected, same_output) = results
    assert len(grids) == len(same_grids)
    for grid, same in zip(grids, same_grids, strict=True):
        assert torch.allclose(grid, same, atol=1e-6)
    assert_same(corrected, same_corrected, 1e-6)
    assert_same(output, same_output, 1e-6)


@every_host
@every_network
def test_the_audit_names_every_layer(way: Way, kind: type[nn.Module]) -> None:
    student = student_from(way, kind)
    calibrate(student, [inputs(kind)])
    for model in (student, way.convert(student)):
        records = way.audit(model)
        assert {record.name for record in records} == set(ORDER[kind])
        assert {record.name for record in records.quantized} == set(ORDER[kind])
        for record in records:
            shape = network(kind).get_submodule(record.name).weight.shape
            assert record.numel == shape.numel(), record.name


@every_host
def test_the_audit_says_why_a_layer_stays_float(way: Way) -> None:
    x = inputs(Residual)
    student = way.prepare(network(Residual), (x[:2],), layers={"second": None})
    calibrate(student, [x])
    assert "second" not in student_of(student).layers()
    for model in (student, way.convert(student)):
        records = way.audit(model)
        assert {record.name for record in records} == set(ORDER[Residual])
        if way.host == "nncf":  # which has no float layer between quantized ones
            assert records["second"].spec == "uniform 8b MAC/8b stored (NNCF's own)"
        else:
            assert [record.name for record in records.skipped] == ["second"]
            assert records["second"].reason
