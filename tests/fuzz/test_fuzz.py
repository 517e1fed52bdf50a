"""Random networks: each is right in a route, or refused in words before calibration.

`python -m tests.fuzz.run --minimise SEED --routes ROUTE` tells what is wrong with one that fails.
"""

import copy

import pytest
import torch
from torch import nn

from tests.fuzz.base import KINDS, UnfitError
from tests.fuzz.check import check
from tests.fuzz.figures import EQUAL, on_grid, reference_sqnr, sqnr
from tests.fuzz.grammar import Recipe, build, inputs_of, recipe_of
from tests.fuzz.minimise import minimise
from tests.fuzz.routes import ROUTES, Made

FAST = range(30)
SLOW = range(30, 330)
# Fast routes see each network of the quick suite, slow ones one in so many.
EVERY = {"simulated": 1, "equalised": 6, "fx": 3, "fx_qat": 3}
# torch.export takes half a minute for some networks with a dynamic batch; these take seconds.
EXPORTED = [
    pytest.param(seed, route, id=f"{route}-{seed}")
    for route, seeds in (("pt2e", (2, 6)), ("onnx", (3, 9, 15, 27)))
    for seed in seeds
]
EVERY_SLOW = {
    "simulated": 3,
    "equalised": 15,
    "fx": 6,
    "fx_qat": 10,
    "onnx": 30,
    "pt2e": 30,
    "pt2e_qat": 50,
    "nncf": 30,
}


def jobs(seeds, every):
    return [
        pytest.param(seed, route, id=f"{route}-{seed}")
        for i, (route, n) in enumerate(every.items())
        for seed in seeds
        if seed % n == i % n
    ]


def judge(seed, route):
    try:
        verdict = check(recipe_of(seed), route)
    except UnfitError:
        pytest.skip("no layer fits")
    assert verdict.result != "wrong", f"{verdict.reason}\n{verdict.network}"
    if verdict.result == "none":
        pytest.skip(verdict.reason)


@pytest.mark.parametrize(("seed", "route"), [*jobs(FAST, EVERY), *EXPORTED])
def test_random_networks(seed, route):
    judge(seed, route)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "route"), jobs(SLOW, EVERY_SLOW))
def test_more_random_networks(seed, route):
    judge(seed, route)


def test_a_seed_is_one_network():
    for seed in (1, 5, 14):
        first, second = build(recipe_of(seed))[0], build(recipe_of(seed))[0]
        assert str(first) == str(second)
        a, b = first.state_dict(), second.state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)
        pairs = zip(inputs_of(recipe_of(seed)), inputs_of(recipe_of(seed)), strict=True)
        assert all(torch.equal(x[0], y[0]) for x, y in pairs)


@pytest.mark.slow
def test_every_kind_of_block_occurs_and_stands():
    seen = set()
    for seed in range(400):
        try:
            model, recipe = build(recipe_of(seed))
        except UnfitError:
            continue
        seen |= {kind for kind, _ in recipe.steps}
        if seed < 60:
            with torch.no_grad():
                model(*inputs_of(recipe)[0])
    assert seen == set(KINDS)


def test_a_block_stays_what_it_is_when_another_goes():
    both = Recipe(0, (3, 8, 8), "plain", "plain", (("dropout", 3), ("pointwise", 4)), "pwlq4")
    alone = Recipe(0, (3, 8, 8), "plain", "plain", (("dropout", 3),), "pwlq4")
    a, b = build(both)[0].state_dict(), build(alone)[0].state_dict()
    assert set(b) < set(a)
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_the_reference_of_one_linear_layer_is_rounding_by_hand():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x):
            return self.linear(x)

    torch.manual_seed(0)
    model, x = One(), torch.randn(16, 6)
    with torch.no_grad():
        low, high = float(x.min()), float(x.max())
        step = (high - low) / 127
        rounded = (x / step).round() * step
        steps = model.linear.weight.abs().amax(1, keepdim=True) * 2 / 15
        y = rounded @ ((model.linear.weight / steps).round() * steps).t() + model.linear.bias
        step = float(y.max() - y.min()) / 127
        by_hand = sqnr(model(x), (y / step).round() * step)
        assert abs(reference_sqnr(model, (x,), 4, 7, trials=1) - by_hand) < 1.0
        assert reference_sqnr(model, (x,), 4, 7) < by_hand + 1.0
        assert torch.equal(on_grid(torch.zeros(3), 4), torch.zeros(3))


def test_ranges_that_clip_are_means_over_parts_of_the_batch():
    x = torch.tensor([[0.0, 1.0], [-2.0, 2.0], [-4.0, 6.0]])
    clipped = on_grid(x, 8, clip=True)
    assert float(clipped.max()) == pytest.approx(3.0, abs=5 / 255)
    assert float(clipped.min()) == pytest.approx(-2.0, abs=5 / 255)


def test_ratios():
    x = torch.ones(100)
    assert sqnr(x, x.clone()) == EQUAL
    assert sqnr({"a": x, "b": [x]}, (x, x * 1.1)) == pytest.approx(20.0, abs=0.01)
    assert sqnr(x, x * float("nan")) == -99.0
    with pytest.raises(ValueError, match="shapes"):
        sqnr(x, torch.ones(99))


RECIPE = Recipe(
    0, (3, 8, 8), "plain", "tuple", (("conv", 1), ("gate", 2), ("bare_conv", 3)), "uniform7"
)


def broken(run):
    """A route that doubles a gate."""
    model = copy.deepcopy(run.model)
    for step in model.steps:
        if hasattr(step, "gate"):
            step.value.weight.data.mul_(2)
    return [Made("doubled", model, "quantized")]


def late(run):
    run.stage, run.calibrated = "convert", True
    from zaq_plugin.ptq import simulate

    simulate(run.model, "no spec")


def early(run):
    from zaq_plugin.ptq import simulate

    simulate(run.model, "no spec")


def foreign(run):
    raise ValueError("not ours")


def greedy(run):
    run.batches[0][0].mul_(2)
    return [Made("same", copy.deepcopy(run.model), "float")]


def careless(run):
    stages = [Made("same", copy.deepcopy(run.model), "float")]
    next(run.model.parameters()).data.mul_(2)
    return stages


@pytest.mark.parametrize(
    ("route", "result", "kind"),
    [
        (broken, "wrong", "numbers: doubled"),
        (late, "wrong", "late refusal"),
        (early, "refused", "simulate"),
        (foreign, "wrong", "ValueError: start: host alone"),
        (greedy, "wrong", "batches changed"),
        (careless, "wrong", "model changed"),
    ],
)
def test_verdicts(monkeypatch, route, result, kind):
    monkeypatch.setitem(ROUTES, "stub", route)
    verdict = check(RECIPE, "stub")
    assert (verdict.result, kind in verdict.kind) == (result, True), verdict


def test_the_smallest_network_that_fails(monkeypatch):
    monkeypatch.setitem(ROUTES, "stub", broken)
    recipe, verdict = minimise(RECIPE, "stub")
    assert [kind for kind, _ in recipe.steps] == ["gate"]
    assert recipe.exit == "plain"
    assert verdict.kind == "numbers: doubled"
    with pytest.raises(ValueError, match="only wrong ones get smaller"):
        minimise(Recipe(0, (3, 8, 8), "plain", "plain", (("conv", 1),), "pwlq4"), "stub")
