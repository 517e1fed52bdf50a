"""Each strategy against a direct float64 computation of its formula."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from layers import float_weight
from torch import Tensor, nn

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.strategies import Request, Work, apply
from zaq_plugin.strategies.gdfq import Conditional, GenerativeTraining
from zaq_plugin.strategies.lbq import relative_error
from zaq_plugin.student import reached_layers

Make = Callable[..., Request]
NAMES = ("stem.0", "block.conv1", "block.conv2", "block.short.0", "fc")


def rows_of(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Float and quantized weights of a student's layer, channel by channel, in float64."""
    original = float_weight(layer).detach().flatten(1).double().numpy()
    return original, layer.weight.detach().flatten(1).double().numpy()


def affine(rows: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    step = np.maximum((high - low) / (2**bits - 1), 1e-30)
    zero = np.round(-low / step)
    return (np.clip(np.round(rows / step) + zero, 0, 2**bits - 1) - zero) * step


def minmax(rows: np.ndarray, bits: int) -> np.ndarray:
    low = np.minimum(rows.min(1, keepdims=True), 0)
    return affine(rows, low, np.maximum(rows.max(1, keepdims=True), 0), bits)


def error(rows: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    return ((rows - rounded) ** 2).sum(1)


def test_rq_is_the_affine_grid_over_the_whole_range(
    model: nn.Module, request_of: Make, real: Tensor
) -> None:
    applied = apply("rq", model, request_of(images=real, activation_bits=5))
    seen: dict[str, Tensor] = {}
    folded = fold_batch_norm(model)
    for name in NAMES:
        folded.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: seen.__setitem__(name, args[0].double())
        )
    folded(real)
    for name in NAMES:
        layer: Any = applied.model.get_submodule(name)
        rows, rounded = rows_of(layer)
        np.testing.assert_allclose(rounded, minmax(rows, 4), rtol=1e-5, atol=1e-6)
        bits = 8 if name == "stem.0" else 5
        low, high = min(0.0, float(seen[name].min())), max(0.0, float(seen[name].max()))
        assert float(layer.input_fake_quant.scale) == pytest.approx(
            (high - low) / (2**bits - 1), rel=1e-5
        )


def test_a_grid_per_tensor_spans_all_channels(model: nn.Module, request_of: Make) -> None:
    applied = apply("rq", model, request_of(granularity="tensor"))
    for name in NAMES:
        rows, rounded = rows_of(applied.model.get_submodule(name))
        flat = minmax(rows.reshape(1, -1), 4).reshape(rows.shape)
        np.testing.assert_allclose(rounded, flat, rtol=1e-5, atol=1e-6)


def test_omse_is_as_good_as_any_clip(model: nn.Module, request_of: Make) -> None:
    applied = apply("omse", model, request_of(weight_bits=3))
    shares = np.linspace(0.3, 1, 15)
    for name in NAMES:
        rows, rounded = rows_of(applied.model.get_submodule(name))
        low = np.minimum(rows.min(1, keepdims=True), 0)
        high = np.maximum(rows.max(1, keepdims=True), 0)
        tried = [
            error(rows, affine(rows, low * a, high * b, 3))
            for a, b in itertools.product(shares, shares)
        ]
        best = np.minimum.reduce(tried)
        assert error(rows, rounded).sum() <= 1.03 * best.sum()
        assert error(rows, rounded).sum() < error(rows, minmax(rows, 3)).sum()


def test_lbq_stores_what_the_first_tensor_leaves(model: nn.Module, request_of: Make) -> None:
    plain = apply("omse", model, request_of()).model
    applied = apply("lbq", model, request_of())
    doubled = {r.name for r in applied.layers if r.stored_bits == 8}
    errors = {}
    for name in NAMES:
        rows, first = rows_of(plain.get_submodule(name))
        errors[name] = error(rows, first).sum() / (rows**2).sum()
        layer = plain.get_submodule(name)
        assert relative_error(float_weight(layer), layer.weight) == pytest.approx(errors[name])
        _, rounded = rows_of(applied.model.get_submodule(name))
        if name in doubled:
            rest = rows - first
            left = error(rest, rounded - first).sum()
            assert left <= 1.01 * error(rest, minmax(rest, 4)).sum(), "second tensor of the rest"
        else:
            np.testing.assert_array_equal(rounded, first)
    assert doubled
    assert min(errors[n] for n in doubled) > max(errors[n] for n in NAMES if n not in doubled)


def test_aciq_allocates_by_range_and_matches_moments(model: nn.Module, request_of: Make) -> None:
    with torch.no_grad():
        model.block.conv1.weight[3] *= 30  # type: ignore[union-attr, operator]
    applied = apply("aciq", model, request_of())
    rows, rounded = rows_of(applied.model.get_submodule("block.conv1"))
    np.testing.assert_allclose(rounded.mean(1), rows.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rounded.std(1), rows.std(1), rtol=1e-4)
    reach = np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0)
    ideal = np.log2(reach ** (2 / 3) / (reach ** (2 / 3)).sum() * len(reach) * 2**4)
    levels = np.array([len(np.unique(np.round(row, 6))) for row in rounded])
    assert bool((levels <= 2 ** np.clip(np.round(ideal), 2, 8)).all())
    assert levels[3] == levels.max() > 2**4


def test_dfq_equalises_before_it_quantizes(model: nn.Module, request_of: Make) -> None:
    applied = apply("dfq", model, request_of())
    assert applied.data == "none"
    assert applied.images is None
    folded = fold_batch_norm(model)
    first = folded.get_submodule("block.conv1").weight.detach().double()  # type: ignore[union-attr]
    second = folded.get_submodule("block.conv2").weight.detach().double()  # type: ignore[union-attr]
    r1, r2 = first.flatten(1).abs().amax(1), second.transpose(0, 1).flatten(1).abs().amax(1)
    s = ((r1 * r2).sqrt() / r2).reshape(-1, 1).numpy()
    rows, rounded = rows_of(applied.model.get_submodule("block.conv1"))
    np.testing.assert_allclose(rows, first.flatten(1).numpy() / s, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(rounded, minmax(rows, 4), rtol=1e-5, atol=1e-6)
    # The range of the input of conv1 is that of a clipped normal: beta + 6 gamma of the stem.
    norm: Any = model.get_submodule("stem.1")
    deviation = norm.weight * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
    high = float((norm.bias + 6 * deviation.abs()).max())
    watcher: Any = applied.model.get_submodule("block.conv1").input_fake_quant
    assert float(watcher.scale) == pytest.approx(high / 255, rel=1e-5)


def test_pwlq_corrects_the_mean_error_of_its_own_images(
    model: nn.Module, request_of: Make, real: Tensor
) -> None:
    applied = apply("pwlq", model, request_of(images=real))
    plain = apply("omse+top-k", model, request_of(images=real, levels="pwlq"))
    for name in NAMES:
        rows, rounded = rows_of(applied.model.get_submodule(name))
        np.testing.assert_array_equal(rounded, rows_of(plain.model.get_submodule(name))[1])
        assert error(rows, rounded).sum() < error(rows, minmax(rows, 4)).sum()
    seen: list[Tensor] = []
    layer: Any = applied.model.get_submodule("block.conv2")
    layer.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    applied.model(real)
    x = layer.input_fake_quant(seen[0]).double()
    wrong = layer.weight.double() - float_weight(layer).double()
    mean = nn.functional.conv2d(x, wrong, padding=1).mean((0, 2, 3))
    shift = plain.model.get_submodule("block.conv2").bias - layer.bias
    torch.testing.assert_close(shift.double(), mean, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("levels", ["uniform", "pwlq"])
@pytest.mark.parametrize("name", ["adaround", "brecq", "qdrop"])
def test_learned_rounding_moves_to_a_neighbouring_level(
    name: str, levels: str, model: nn.Module, request_of: Make, real: Tensor
) -> None:
    request = request_of(images=real, levels=levels, weight_bits=3, effort=0.1)
    applied, plain = apply(name, model, request), apply("omse+top-k", model, request)
    moved = 0
    for slot in reached_layers(plain.model, real[:2]):
        place = slot.name.split(".parametrizations")[0]
        rows, _ = rows_of(plain.model.get_submodule(place))
        _, rounded = rows_of(applied.model.get_submodule(place))
        for row, now, ladder in zip(rows, rounded, slot.levels().double().numpy(), strict=True):
            above = np.clip(np.searchsorted(ladder, row), 1, len(ladder) - 1)
            pair = np.stack([ladder[above - 1], ladder[above]])
            assert np.abs(pair - now).min(0).max() < 1e-5, "another level than the two around it"
            nearest = pair[np.abs(pair - row).argmin(0), np.arange(len(row))]
            moved += int((np.abs(nearest - now) > 1e-5).sum())
    assert moved > 0
    steps = [
        [float(m.get_submodule(n).input_fake_quant.scale) for n in NAMES]  # type: ignore[union-attr, operator]
        for m in (applied.model, plain.model)
    ]
    assert (steps[0] == steps[1]) == (name == "adaround"), "AdaRound learns no activation steps"


def test_zeroq_images_see_what_the_batch_norms_remember(model: nn.Module, request_of: Make) -> None:
    def distance(images: Tensor) -> float:
        total: list[float] = []
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

        def look(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].double()
            mean, deviation = x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)
            gap = (mean - norm.running_mean).square().mean()  # type: ignore[operator]
            gap = gap + (deviation - norm.running_var.sqrt()).square().mean()  # type: ignore[operator, union-attr]
            total.append(float(gap))

        handles = [n.register_forward_pre_hook(look) for n in norms]
        with torch.no_grad():
            model(images)
        for handle in handles:
            handle.remove()
        return sum(total)

    noise = apply("rq", model, request_of(synthetic_count=16)).images
    synthetic = apply("zeroq", model, request_of(synthetic_count=16, effort=0.4)).images
    assert noise is not None
    assert synthetic is not None
    assert distance(synthetic) < 0.7 * distance(noise)


def test_gdfq_s_losses_by_hand(model: nn.Module, request_of: Make) -> None:
    request = request_of(batch_size=6)
    work = Work(request, model, model)
    game = Conditional().game(work)
    images, labels = game.draw()
    seen: list[float] = []

    def look(norm: Any, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().double()
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        gap = (mean - norm.running_mean).square().mean()
        seen.append(float(gap + (var.sqrt() - norm.running_var.sqrt()).square().mean()))

    handles = [
        m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    logits = model(images).detach().double()
    for handle in handles:
        handle.remove()
    chosen = -logits.log_softmax(1)[torch.arange(6), labels].mean()
    expected = float(chosen) + 0.1 * sum(seen) / len(seen)
    assert float(game.loss(images, labels)) == pytest.approx(expected, rel=1e-4)

    student = apply("rq", model, request_of(weight_bits=3)).model
    loss = GenerativeTraining(label_weight=0.3).loss(model, student, images.detach(), labels)
    p = logits.softmax(1)
    answer = student(images.detach()).double().log_softmax(1)
    divergence = (p * (p.log() - answer)).sum(1).mean()
    hard = -answer[torch.arange(6), labels].mean()
    assert float(loss) == pytest.approx(float(divergence + 0.3 * hard), rel=1e-4)

    z = torch.randn(4, game.generator.generator.latent_dim)
    own = torch.arange(4)
    game.generator.eval()
    by_hand = game.generator.generator(z * game.generator.embedding.weight[own])
    by_hand = game.generator.generator.statistics.clamp(by_hand)
    torch.testing.assert_close(game.generator(z, own), by_hand)


def test_the_generator_learns_its_labels(model: nn.Module, request_of: Make) -> None:
    game = Conditional(warmup=1).game(Work(request_of(batch_size=16), model, model))
    state = game.rng.get_state()

    def loss() -> float:
        game.rng.set_state(state)  # the same noise and labels
        with torch.no_grad():
            return float(game.loss(*game.draw()))

    first = loss()
    for _ in range(15):
        game.rng.set_state(state)
        game.step()
    assert loss() < first, "not even one batch of noise and labels is learned"
