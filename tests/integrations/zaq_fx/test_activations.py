"""Operators and layers without weight matrices: conversion does not change what they compute."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fx_oracle import assert_right, converted, float_check, prepared, sqnr
from torch import Tensor, nn
from torch.nn import functional

import zaq_fx
from zaq_fx.followers import Follower
from zaq_plugin.observers import MinMaxObserver, TopKMedianObserver
from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.student.fake_quantizers import range_observer

X = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A layer or function between two convolutions."""

    def __init__(self, middle: Any, gain: float = 3.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.a.weight.mul_(gain)
        self.middle = middle if isinstance(middle, nn.Module) else None
        self.function = None if isinstance(middle, nn.Module) else middle

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(self.middle(y) if self.function is None else self.function(y))


def between(middle: Any) -> nn.Module:
    model = Between(middle).eval()
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 4)
        if "Norm" in type(module).__name__ and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "instance norm, running": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "layer norm": lambda: nn.LayerNorm(10),
    "layer norm, not affine": lambda: nn.LayerNorm(10, elementwise_affine=False),
    "batch norm, not affine": lambda: nn.BatchNorm2d(8, affine=False),
    "batch norm, by batches": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "relu, batch norm": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8, affine=False)),
    "hardswish": nn.Hardswish,
    "leaky relu": lambda: nn.LeakyReLU(0.3),
    "elu": lambda: nn.ELU(2.0),
    "prelu": lambda: nn.PReLU(8, 0.4),
    "softmax": lambda: nn.Softmax(1),
    "dropout": lambda: nn.Dropout(0.5),
    "average, ceil": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average, no padding": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, divisor": lambda: nn.AvgPool2d(3, divisor_override=1),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d(3),
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    assert_right(between(LAYERS[name]()), X)


@pytest.mark.parametrize("name", ["batch norm, not affine", "batch norm, by batches", "prelu"])
def test_layers_in_training(name: str) -> None:
    model = between(LAYERS[name]())
    ready = prepared(model, X, qat=True)
    zaq_fx.calibrate(ready, [X])
    ready.train()
    ready(X).square().mean().backward()
    assert all(p.grad is not None for p in ready.parameters() if p.requires_grad)
    assert sqnr(model(X), converted(model, X, qat=True)(X)) > 22


KEPT = {
    "instance norm": ("InstanceNorm2d", "wrong for tensors whose channels lie last in memory"),
    "instance norm, running": ("InstanceNorm2d", "the input's statistics in place of the running"),
    "batch norm, by batches": ("BatchNorm2d", "track_running_stats=False"),
    "prelu": ("PReLU", "does not compute its slopes"),
}


@pytest.mark.parametrize("name", KEPT)
def test_layers_kept_float_are_in_the_audit(name: str) -> None:
    kind, reason = KEPT[name]
    int8_model = converted(between(LAYERS[name]()), X)
    for audit in (int8_model.zaq_audit, zaq_fx.audit(int8_model)):
        assert audit["middle"].kind == kind
        assert reason in audit["middle"].reason
        assert [r.name for r in audit.quantized] == ["a", "b"]
    assert type(int8_model.middle).__name__ == kind  # plain again


def running(y: Tensor) -> Tensor:
    mean, var = torch.full((8,), 0.5), torch.full((8,), 2.0)
    return functional.instance_norm(y, mean, var, use_input_stats=False)


def few(y: Tensor) -> Tensor:
    """Fewer values a channel than the batch has samples."""
    return y[..., ::5, ::5]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "alpha": lambda y: torch.add(y, torch.sigmoid(y), alpha=5),
    "alpha, relu": lambda y: torch.relu(torch.add(y, torch.sigmoid(y), alpha=5)),
    "alpha, by position": lambda y: functional.relu(torch.add(y, 2.0, alpha=3)),
    "alpha of a difference": lambda y: torch.sub(y, torch.sigmoid(y), alpha=3),
    "alpha of a method": lambda y: y.add(torch.sigmoid(y), alpha=5),
    "by name": lambda y: torch.add(input=y, other=torch.sigmoid(y)),
    "large factor": lambda y: 50 * y,
    "negative factor": lambda y: torch.relu(y * -1),
    "nothing": lambda y: y * 0 + y,
    "large number": lambda y: y + 300.0 - 300,
    "a number of the shape": lambda y: y * y.shape[-1] ** -0.5,
    "mean as a gate": lambda y: y * torch.sigmoid(y.mean((2, 3), keepdim=True)),
    "mean added": lambda y: y + y.mean((2, 3), keepdim=True),
    "average": lambda y: functional.avg_pool2d(y, 3, 2, 1),
    "global average": lambda y: functional.adaptive_avg_pool2d(y, 3),
    "bicubic": lambda y: functional.interpolate(y, size=(15, 15), mode="bicubic"),
    "running instance norm": running,
    "instance norm of a few values": lambda y: functional.instance_norm(few(y)),
    "group norm of a few values": lambda y: functional.group_norm(few(y), 4),
    "sigmoid of floats": lambda y: torch.sigmoid(4 * y - 1),
    "sigmoid by a method": lambda y: (y * 1.0).sigmoid(),
    "maximum": lambda y: torch.maximum(y, torch.sigmoid(y)),
    "halves": lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    assert_right(between(FUNCTIONS[name]), X)


def test_functions_kept_float_are_in_the_audit() -> None:
    int8_model = converted(between(FUNCTIONS["alpha"]), X)
    (record,) = int8_model.zaq_audit.skipped
    assert (record.kind, record.reason) == ("add", "torch.ao's int8 addition drops alpha")
    assert zaq_fx.audit(int8_model)[record.name] == record
    torch.jit.script(int8_model)  # no class of ours is left in it


def doubled(y: Tensor) -> Tensor:
    z = torch.sigmoid(y)
    y.add_(z, alpha=2)
    return y


def halved(y: Tensor) -> Tensor:
    y = y * 1.5
    y[:, ::2].mul_(0.1)
    return y


def rectified(y: Tensor) -> Tensor:
    z = functional.relu(y, inplace=True)
    return y + torch.sigmoid(z)


@pytest.mark.parametrize("function", [doubled, halved, rectified])
def test_what_is_written_in_place_is_not_lost(function: Callable[[Tensor], Tensor]) -> None:
    assert_right(between(function), X)


def test_writes_that_cannot_be_told_apart_are_refused() -> None:
    def behind_a_view(y: Tensor) -> Tensor:
        y.view(-1).mul_(2)
        return y

    with pytest.raises(ValueError, match=r"'mul_' writes in place into 'view'.*a new tensor"):
        prepared(between(behind_a_view), X)


class Branches(nn.Module):
    """Two branches of different size, joined."""

    def __init__(self, ratio: float, join: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.joined, self.small = nn.Conv2d(16, 4, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.b.weight.div_(ratio)
            self.b.bias.div_(ratio)
        self.join = join

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = functional.relu(self.a(x)), functional.relu(self.b(x))
        return self.joined(self.join(a, b)), self.small(functional.max_pool2d(b, 2))


JOINS: dict[str, Callable[..., Tensor]] = {
    "cat": lambda a, b: torch.cat([a, b], 1),
    "cat of a sigmoid": lambda a, b: torch.cat([torch.sigmoid(b), 9 * a], dim=1),
    "stack": lambda a, b: torch.stack([a, b], 1).flatten(1, 2),
}


@pytest.mark.parametrize("ratio", [1, 10, 100])
@pytest.mark.parametrize("name", JOINS)
def test_joined_tensors_keep_their_grids(name: str, ratio: float) -> None:
    model = Branches(ratio, JOINS[name]).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="All inputs of this cat operator")
        int8_model = assert_right(model, X, db=25)  # the small branch has an output of its own
        kernels = [n.target for n in int8_model.graph.nodes if n.target is torch.ops.quantized.cat]
        assert len(kernels) == (name == "cat")
        assert sqnr(model(X), converted(model, X, qat=True)(X)) > 25


def test_an_int8_concatenation_is_the_reference_bit_for_bit() -> None:
    ready = prepared(Branches(10, JOINS["cat"]).eval(), X)
    zaq_fx.calibrate(ready, [X])
    integers, floats = (zaq_fx.convert(ready, reference=r) for r in (False, True))
    targets = {n.target for n in integers.graph.nodes}
    assert torch.ops.quantized.cat in targets
    assert torch.cat not in targets
    assert sqnr(floats(X), integers(X)) > 35


def test_outputs_on_their_inputs_grid_add_nothing_to_its_range() -> None:
    """The host lets one observer watch both; an average over its calls would be far too small."""
    model = between(lambda y: y.clamp(-1e-3, 1e-3).reshape(-1, 8, 10, 10))
    ready = prepared(model, X)
    followers = [m for m in ready.modules() if isinstance(m, Follower)]
    assert followers
    assert all(f.leader is followers[0].leader for f in followers)
    zaq_fx.calibrate(ready, [X])
    largest = model.a(X).abs().max()
    leader = followers[0].leader.activation_post_process
    assert max(-float(leader.min_val), float(leader.max_val)) > 0.7 * float(largest)
    fresh = prepared(model, X)
    fresh.load_state_dict(ready.state_dict())
    assert torch.equal(zaq_fx.convert(fresh)(X), zaq_fx.convert(ready)(X))


@pytest.mark.parametrize("observer", [TopKMedianObserver, MinMaxObserver])
@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(0.0, 6.0), functional.relu6])
def test_no_level_is_spent_on_what_an_activation_cuts_off(
    activation: Any, qat: bool, observer: Any
) -> None:
    model = between(activation)
    with torch.no_grad():
        model.a.weight.mul_(20)
        assert model.a(X).max() > 60  # ten times what comes through
    ready = prepared(model, X, qat=qat, observer=observer)
    zaq_fx.calibrate(ready, [X])
    followers = [m for m in ready.modules() if isinstance(m, Follower)]
    assert len(followers) == 1
    assert 5.5 < 127 * float(followers[0].calculate_qparams()[0]) <= 6.01
    assert sqnr(model(X), zaq_fx.convert(ready)(X)) > 22
    fresh = prepared(model, X, qat=qat, observer=observer)
    fresh.load_state_dict(ready.state_dict())
    assert torch.equal(zaq_fx.convert(fresh)(X), zaq_fx.convert(ready)(X))


def test_training_begins_before_the_grid_behind_an_activation_is_known() -> None:
    model = between(nn.ReLU6())
    ready = prepared(model, X, qat=True)
    assert sqnr(model(X), ready(X)) > 20  # the very first batch


def test_observers_of_whole_ranges_need_no_followers() -> None:
    ready = prepared(between(lambda y: y.clamp(-1, 1)), X, observer=MinMaxObserver)
    assert not any(isinstance(m, Follower) for m in ready.modules())


def test_followers_quantize_in_training_without_observing() -> None:
    model = between(lambda y: y.clamp(-1, 1))
    assert float_check(model, X, qat=True) > 100
    ready = prepared(model, X, qat=True)
    zaq_fx.calibrate(ready, [X])
    follower = next(m for m in ready.modules() if isinstance(m, Follower))
    scale = float(follower.calculate_qparams()[0])
    out = follower(X)
    assert torch.allclose(out / scale, (out / scale).round(), atol=1e-3)
    follower.leader.enable_observer()
    seen = int(follower.leader.activation_post_process.num_batches)
    follower(X)
    assert int(follower.leader.activation_post_process.num_batches) == seen
    assert bool(follower.leader.observer_enabled[0])


@pytest.mark.parametrize("qat", [False, True])
def test_wide_tensors_take_their_ranges_as_they_were_told(qat: bool) -> None:
    told = {"k": 3, "share": 0.5, "samples": 2}
    observer = TopKMedianObserver.with_args(**told)
    spec, net = PWLQSpec(bits=3), between(nn.ReLU())
    ready = zaq_fx.prepare(net, (X[:2],), spec, 4, qat=qat, observer=observer)
    taking = [o for m in ready.modules() if isinstance(o := range_observer(m), TopKMedianObserver)]
    assert {m.bits for m in taking} == {4, 8}  # the image is wide
    assert {tuple(getattr(m, name) for name in told) for m in taking} == {tuple(told.values())}
