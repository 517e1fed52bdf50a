"""Walking a student layer by layer: how often it runs, how much memory, what stays behind."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, simulate
from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.student import QuantLayer, Student, student_of
from zaq_plugin.student.walk import LiveBytes, walk_layers


class Net(nn.Module):
    """Three layers and a shortcut; the second one may be called twice."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 4, 1)
        self.twice, self.runs = twice, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        x = self.first(x).relu()
        y = self.second(x).relu()
        return self.third((self.second(y) if self.twice else y) + x)


def student(twice: bool = False) -> tuple[Student, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(100, 3, 6, 6)
    model = simulate(Net(twice).eval(), UniformSpec(bits=4), 8, example_inputs=(images[:2],))
    calibrate(model, [images])
    model.runs = 0
    return student_of(model), images


class Shift:
    """Adds the mean of a layer's inputs to its bias, so that later layers see it."""

    seen: dict[str, tuple[int, float]]

    def __init__(self, layer: QuantLayer) -> None:
        self.layer, self.count, self.total = layer, 0, 0.0

    def add(self, x: Tensor) -> None:
        self.count += len(x)
        self.total += float(x.double().sum())

    def finish(self) -> None:
        self.seen[self.layer.name] = self.count, self.total
        self.layer.add_to_bias(torch.full_like(self.layer.bias, self.total / 1e3))


def walked(memory: int, twice: bool = False) -> tuple[dict[str, tuple[int, float]], int]:
    view, images = student(twice)
    seen: dict[str, tuple[int, float]] = {}

    class Work(Shift):
        pass

    Work.seen = seen
    walk_layers(view, images.split(25), lambda layer, _: Work(layer), what="t", memory=memory)
    model: Any = view.model
    return seen, model.runs


def test_one_run_for_all_layers_where_memory_allows_it() -> None:
    plenty, runs = walked(1 << 30)
    assert runs == 1 + 2  # one batch to look at, 100 images in batches of 64
    assert list(plenty) == ["first", "second", "third"]
    assert {count for count, _ in plenty.values()} == {100}
    none, runs = walked(0)
    assert runs == 1 + 3 * 4  # the four batches that were given, up to each layer
    for name, (count, total) in plenty.items():
        assert none[name] == (count, pytest.approx(total, rel=1e-5))


def test_what_does_not_fit_is_run_anew_for_each_layer() -> None:
    plenty, _ = walked(1 << 30)
    # In front of the third layer a sample holds at least its image, the shortcut and the sum.
    sample = 4 * 36 * (3 + 8 + 8)
    some, runs = walked(150 * sample)
    assert 1 + 4 < runs < 1 + 3 * 4
    for name, (count, total) in plenty.items():
        assert some[name] == (count, pytest.approx(total, rel=1e-5))


def test_a_layer_that_is_called_twice_is_done_after_its_second_call() -> None:
    plenty, runs = walked(1 << 30, twice=True)
    assert [count for count, _ in plenty.values()] == [100, 200, 100]
    assert runs == 1 + 2 + 2
    for name, (count, total) in walked(0, twice=True)[0].items():
        assert plenty[name] == (count, pytest.approx(total, rel=1e-5))


@pytest.mark.parametrize("where", ["begin", "add", "finish"])
def test_an_error_leaves_no_thread_behind(where: str) -> None:
    view, images = student()

    class Work:
        def add(self, x: Tensor) -> None:
            if where == "add":
                raise RuntimeError("in add")

        def finish(self) -> None:
            if where == "finish":
                raise RuntimeError("in finish")

    def begin(layer: QuantLayer, samples: int) -> Work:
        if where == "begin" and layer.name == "second":
            raise RuntimeError("in begin")
        return Work()

    before = threading.active_count()
    with pytest.raises(RuntimeError, match=f"in {where}"):
        walk_layers(view, images.split(10), begin, what="t")
    assert threading.active_count() == before
    hooks = [m for m in view.model.modules() if m._forward_pre_hooks]
    assert all("student" not in str(m._forward_pre_hooks) for m in hooks)


def test_an_error_of_the_model_arrives() -> None:
    view, images = student()

    class Broken:
        def __init__(self, layer: QuantLayer) -> None:
            self.layer = layer

        def add(self, x: Tensor) -> None:
            """Nothing."""

        def finish(self) -> None:
            if self.layer.name == "second":
                view.model.third = None  # type: ignore[assignment]

    before = threading.active_count()
    with pytest.raises(TypeError, match="NoneType"):
        walk_layers(view, images.split(50), lambda layer, _: Broken(layer), what="t")
    assert threading.active_count() == before


class Watching(Net):
    """Notes what torch keeps for each thread, and catches what its layers raise."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
        try:
            return super().forward(x)
        except Exception:
            return self.third(self.first(x))


def test_a_pass_has_its_caller_s_surroundings() -> None:
    images = torch.randn(20, 3, 6, 6)
    model = simulate(Watching().eval(), UniformSpec(bits=4), None, example_inputs=(images[:2],))
    seen: list[tuple[bool, bool]] = []
    for cast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            walk_layers(
                student_of(model), images.split(5), lambda layer, _: Quiet(), what="t"
            )  # fmt: skip
        seen.append(model.seen)  # type: ignore[arg-type]
    assert seen == [(True, False), (False, False)]


class Quiet:
    """Takes inputs and does nothing; or fails at the end."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def add(self, x: Tensor) -> None:
        """Nothing."""

    def finish(self) -> None:
        if self.fails:
            raise RuntimeError("no")


def test_a_model_that_catches_errors_is_left_all_the_same() -> None:
    images = torch.randn(20, 3, 6, 6)
    model = simulate(Watching().eval(), UniformSpec(bits=4), None, example_inputs=(images[:2],))
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no"):
        walk_layers(student_of(model), images.split(5), lambda layer, _: Quiet(True), what="t")
    assert threading.active_count() == before


def test_live_bytes_are_those_that_somebody_holds() -> None:
    with LiveBytes() as live:
        x = torch.ones(1000)
        y = x + 1
        view = y[:10]
        assert live.now() == 8000
        del y
        assert live.now() == 8000  # the view holds it
        del view
        assert live.now() == 4000
