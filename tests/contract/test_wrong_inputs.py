"""A batch of another kind or shape is refused in our own sentence, in every host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hosts import Way, every_host
from small_networks import Residual, inputs, student_from
from torch import Tensor

from zaq_plugin.ptq import calibrate, correct_bias
from zaq_plugin.student.batches import taking

WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "uint8": (
        lambda x: (x * 50).to(torch.uint8),
        "of uint8. ",
        "Its weights are float32: pass images.float() / 255, normalised as they were in training.",
    ),
    "double": (
        lambda x: x.double(),
        "of float64. ",
        "Its weights are float32: pass images.to(torch.float32).",
    ),
    "channels": (
        lambda x: torch.cat([x, x], 1),
        "of float32. ",
        "Pass batches of the shape that it was trained on, for images (n, ",
    ),
}


@every_host
@pytest.mark.parametrize("name", WRONG)
def test_what_came_what_was_expected_and_what_to_do(way: Way, name: str) -> None:
    change, kind, advice = WRONG[name]
    x = inputs(Residual)
    wrong = change(x)
    student = student_from(way, Residual)
    for verb in (calibrate, correct_bias):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            verb(student, [wrong])
        text = str(caught.value)
        assert f"does not take the batch that it was given, {tuple(wrong.shape)} {kind}" in text
        assert advice in text
        assert "torch said: " in text
        calibrate(student, [x])  # which it takes, still


def test_errors_of_the_models_own_and_want_of_memory_stay() -> None:
    call = ((torch.ones(1),), {})
    for error in (RuntimeError("boom"), MemoryError("no more"), KeyError("size mismatch")):
        with pytest.raises(type(error)) as caught, taking(torch.nn.Identity(), call):
            raise error
        assert caught.value is error
    text = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    with pytest.raises(RuntimeError, match="allocate"), taking(torch.nn.Identity(), call):
        raise RuntimeError(text)
