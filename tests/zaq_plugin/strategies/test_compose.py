"""Names, compositions, and what a request refuses."""

import pytest
import torch
from networks import Net, perturb
from torch import nn

from zaq_plugin.strategies import STRATEGIES, Request, apply, compose

SHAPE = (3, 16, 16)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Net(5, depthwise=False))


def request_of(**changes: object) -> Request:
    values = {
        "weight_bits": 4,
        "activation_bits": 8,
        "example_inputs": (torch.zeros(2, *SHAPE),),
        "synthetic_count": 8,
        "effort": 0.02,
        **changes,
    }
    return Request(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rq", "omse", "pwlq"])
def test_a_strategy_gives_a_calibrated_student_at_the_bits_asked_for(
    name: str, model: nn.Module
) -> None:
    applied = apply(name, model, request_of())
    assert applied.strategy == name
    assert applied.data == "synthetic"
    assert {r.stored_bits for r in applied.layers} == {4}
    expected = 3 if name == "pwlq" else 4
    assert {r.mac_bits for r in applied.layers} == {expected}
    assert all("not calibrated" not in str(r.activation) for r in applied.layers)
    x = torch.randn(4, *SHAPE)
    assert applied.model(x).shape == (4, 5)
    assert not torch.equal(applied.model(x), model(x))


def test_an_unknown_strategy_is_named_with_what_may_have_been_meant(model: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"no strategy 'omsee'. Did you mean 'omse'\? Known are rq"
    ):
        apply("omsee", model, request_of())
    with pytest.raises(ValueError, match="no strategy 'wrong'"):
        compose("rq+wrong")


def test_strategies_are_ordered_from_the_floor_up() -> None:
    assert next(iter(STRATEGIES)) == "rq"
    assert all(s.paper and s.title and s.name == name for name, s in STRATEGIES.items())
