"""Images that strategies make: how many at a time, and what is said where nothing can move them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from zaq_plugin.image_counts import CALIBRATION_IMAGES, TRAINING_IMAGES
from zaq_plugin.ptq import simulate
from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.strategies import Request, apply, quantize_prepared, synthetic_images

Make = Callable[..., Request]


class Plain(nn.Module):
    """Without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu().mean((2, 3)))


def test_without_batch_norm_a_note_says_that_images_are_not_distilled(
    model: nn.Module, request_of: Make
) -> None:
    applied = apply("pwlq", Plain().eval(), request_of())
    assert any(
        "images are what they start from (leaves): Plain has no BatchNorm" in note
        for note in applied.notes
    )
    assert not any("what they start from" in n for n in apply("pwlq", model, request_of()).notes)


@pytest.mark.parametrize(("count", "at_a_time"), [(8, 4), (3, 3)])
def test_images_are_distilled_in_batches_of_the_request_s_size(
    model: nn.Module, request_of: Make, count: int, at_a_time: int
) -> None:
    seen: set[int] = set()
    model.register_forward_pre_hook(lambda module, args: seen.add(len(args[0])))
    images = synthetic_images("pwlq", model, request_of(synthetic_count=count, batch_size=4))
    assert images is not None
    assert len(images) == count
    assert seen == {at_a_time}


@pytest.mark.parametrize(
    ("strategy", "count"),
    [("rq", CALIBRATION_IMAGES), ("gptq", CALIBRATION_IMAGES), ("zaq", TRAINING_IMAGES)],
)
def test_one_number_says_how_many_images_are_made_by_default(
    request_of: Make, strategy: str, count: int
) -> None:
    images = synthetic_images(strategy, Plain().eval(), request_of(synthetic_count=None))
    assert images is not None
    assert len(images) == count
    few = synthetic_images(strategy, Plain().eval(), request_of(synthetic_count=5))
    assert few is not None
    assert len(few) == 5


def test_a_prepared_model_gets_as_many_images() -> None:
    model, seen = Plain().eval(), set[int]()
    model.register_forward_pre_hook(lambda module, args: seen.add(len(args[0])))
    student = simulate(model, PWLQSpec(3), 8, example_inputs=(torch.zeros(2, 3, 16, 16),))
    options = {"float_model": model, "image_shape": (3, 16, 16), "batch_size": 512}
    quantize_prepared(student, None, "pwlq+gptq", **options)
    assert max(seen) == CALIBRATION_IMAGES
