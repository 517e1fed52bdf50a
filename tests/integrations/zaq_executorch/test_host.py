"""ExecuTorch as a host of every strategy."""

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.strategies import Request, apply
from zaq_plugin.student.host import Assignment, find_host

PWLQ = PWLQSpec()


def test_a_strategy_runs_in_it(net: nn.Module, images: Tensor) -> None:
    request = Request(5, 8, example_inputs=(images[:2],), images=images, host="executorch")
    student, host = apply("pwlq+gptq", net, request).model, find_host("executorch")
    converted = host.convert(student)
    assert {record.stored_bits for record in host.audit(converted)} == {5}
    with torch.no_grad():
        apart = (converted(images) - student(images)).abs().max()
        step = (student(images).max() - student(images).min()) / 255
    assert apart <= 1.01 * step


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        (Assignment(PWLQ, 4), "every layer's input has 4-bit activations; use 8 bits"),
        (Assignment(PWLQ, None), "every layer's input has float activations"),
        (Assignment(PWLQ, 8, {"fc": (PWLQ, 6)}), "fc has 6-bit activations"),
        (Assignment(PWLQ, 8, input_bits=4), "the model's own input has 4-bit activations"),
        (Assignment(PWLQ, PWLQ), "PWLQ activations are simulated"),
        (Assignment(PWLQ, 8, per_tensor=True), "one grid per output channel"),
    ],
)
def test_what_it_cannot_do(assignment: Assignment, text: str) -> None:
    why = find_host("executorch").why_not(assignment)
    assert why is not None
    assert why.startswith("executorch")
    assert text in why


def test_what_it_can_do() -> None:
    host = find_host("executorch")
    assert host.why_not(Assignment(PWLQ)) is None
    assert host.why_not(Assignment(PWLQ, 8, {"fc": None})) is None


def test_narrow_activations_are_refused_before_a_strategy_makes_images(net: nn.Module) -> None:
    request = Request(5, 4, example_inputs=(torch.zeros(2, 3, 17, 17),), host="executorch")
    with pytest.raises(ValueError, match="executorch multiplies int8 by int8.*4-bit activations"):
        apply("pwlq+gptq", net, request)
