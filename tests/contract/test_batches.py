"""A batch means the same in every host, however it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hosts import Way, assert_same, biases, every_host, ranges
from small_networks import Perceptron, Plain, Residual, inputs, student_from
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, compensate_rounding, correct_bias
from zaq_plugin.student import twin


def label(x: Tensor) -> Tensor:
    """Labels that would show if they were taken for inputs."""
    return torch.full((len(x),), 100, dtype=torch.long)


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "with_label": lambda x: (x, label(x)),
    "list_with_label": lambda x: [x, label(x)],
    "alone_in_a_tuple": lambda x: (x,),
    "by_keyword": lambda x: {"x": x},
}


@every_host
@pytest.mark.parametrize("kind", [Residual, Perceptron], ids=["residual", "perceptron"])
def test_forms_of_a_batch(way: Way, kind: type[nn.Module]) -> None:
    x = inputs(kind)
    parts = x.split([8, 5, 3])
    expected: tuple[Any, ...] = ()
    for form in (lambda part: part, *FORMS.values()):
        student = student_from(way, kind)
        batches = [form(part) for part in parts]
        calibrate(student, batches)
        correct_bias(student, batches)
        corrected = biases(student)
        compensate_rounding(student, batches, twin(student_from(way, kind)))
        state = (ranges(student), corrected, biases(student))
        expected = expected or state
        for first, second in zip(expected, state, strict=True):
            assert_same(first, second, 0)
    for part, original in zip(parts, x.split([8, 5, 3]), strict=True):
        assert torch.equal(part, original)


@every_host
@pytest.mark.parametrize("kind", [Plain, Perceptron], ids=["plain", "perceptron"])
def test_sizes_of_batches(way: Way, kind: type[nn.Module]) -> None:
    """The same samples in other batches: the bias is their mean, whatever the batches are."""
    x = inputs(kind)
    results = []
    for sizes in ([16], [4, 4, 4, 4], [1, 10, 5]):
        student = student_from(way, kind)
        calibrate(student, [x])
        correct_bias(student, x.split(sizes))
        results.append(biases(student))
    untouched = biases(student_from(way, kind))
    assert any(float((results[0][n] - b).abs().max()) > 1e-3 for n, b in untouched.items())
    for other in results[1:]:
        assert_same(results[0], other, 1e-5)


@every_host
@pytest.mark.parametrize("kind", [Plain, Perceptron], ids=["plain", "perceptron"])
def test_a_pass_for_all_layers_or_one_for_each(way: Way, kind: type[nn.Module]) -> None:
    x = inputs(kind)
    results = []
    for memory in (1 << 30, 0):
        student = student_from(way, kind)
        calibrate(student, [x])
        correct_bias(student, x.split([5, 8, 3]), memory=memory)
        results.append(biases(student))
    assert_same(*results, within=1e-5)


class Unbatched(nn.Module):
    """Takes one image without a batch axis, or several."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@every_host
@pytest.mark.parametrize("kind", [Unbatched, Perceptron], ids=["convolutions", "perceptron"])
def test_a_sample_without_a_batch_axis(way: Way, kind: type[nn.Module]) -> None:
    x = inputs(kind, 3)
    torch.manual_seed(0)
    model = kind().eval()
    results = []
    for example, batches in (((x[:2],), [x[:1], x[1:2], x[2:]]), ((x[0],), list(x))):
        student = way.prepare(model, example)
        calibrate(student, batches)
        correct_bias(student, batches)
        results.append((ranges(student), biases(student)))
    (batched, mean), (unbatched, same) = results
    assert_same(dict(enumerate_values(batched)), dict(enumerate_values(unbatched)), 1e-6)
    assert_same(mean, same, 1e-5)


def enumerate_values(values: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """By place: a graph's names may differ with its input's rank."""
    return [(str(place), value) for place, value in enumerate(values.values())]
