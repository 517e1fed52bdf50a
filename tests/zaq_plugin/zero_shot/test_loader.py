from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate
from zaq_plugin.student.fake_quantizers import activation_slots, has_range, set_switches
from zaq_plugin.zero_shot import ZeroShotConfig, ZeroShotLoader
from zaq_plugin.zero_shot.discrepancy import relation_distance

SHAPE = (3, 8, 8)
GENERATOR = ZeroShotConfig(
    steps=10,
    batch_size=8,
    images="generator",
    latent_dim=8,
    generator_width=4,
    warmup_steps=2,
    alpha=0.5,
    loss="l1",
    replay_share=0.3,
)
MIXED = GENERATOR.with_changes(images="mixed", distilled_images=16, distill_steps=2)
DISTILLED = MIXED.with_changes(images="distilled")


@pytest.fixture
def student(tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]) -> nn.Module:
    return make_student(tiny())


@pytest.mark.parametrize("config", [GENERATOR, MIXED, DISTILLED], ids=lambda c: c.images)
def test_an_unmodified_training_loop(config: ZeroShotConfig, student: nn.Module) -> None:
    """The loop of any tutorial, with the loader in the DataLoader's place."""
    loader = ZeroShotLoader(student, SHAPE, config)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    seen = 0
    for images, targets in loader:
        optimizer.zero_grad()
        loss = criterion(student(images), targets.softmax(1))
        loss.backward()
        optimizer.step()
        seen += 1
        assert images.shape == (8, *SHAPE)
        assert targets.shape == (8, 4)
        assert not images.requires_grad
        assert not targets.requires_grad
    assert seen == len(loader) == 10


def test_targets_are_the_float_models_answers(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    for images, targets in ZeroShotLoader(make_student(model), SHAPE, GENERATOR):
        torch.testing.assert_close(targets, model(images), rtol=1e-4, atol=1e-4)


def test_loss_is_d_o_plus_alpha_d_f(student: nn.Module) -> None:
    config = GENERATOR.with_changes(feature_weight=0.0)
    loader = ZeroShotLoader(student, SHAPE, config)
    stages = {}
    for name in ("stage1", "stage2"):
        for tag, model in (("P", loader.teacher), ("Q", student)):
            model.get_submodule(name).register_forward_hook(
                lambda m, a, out, key=(tag, name): stages.__setitem__(key, out.double())
            )
    images, targets = next(iter(loader))
    output = student(images)
    loss = loader.loss(output, targets)
    d_o = (targets.double() - output.double()).abs().mean()
    d_f = sum(relation_distance(stages["P", n], stages["Q", n]) / 2 for n in ("stage1", "stage2"))
    assert float(loss) == pytest.approx(float(d_o + 0.5 * d_f), rel=1e-4)
    assert loader.losses["D_o"] == pytest.approx(float(d_o), rel=1e-4)


def test_loss_needs_a_forward_pass(student: nn.Module) -> None:
    loader = ZeroShotLoader(student, SHAPE, GENERATOR)
    _, targets = next(iter(loader))
    with pytest.raises(ValueError, match="run the student on the loader's images before calling"):
        loader.loss(targets, targets)


def test_generator_step_leaves_the_student_alone(student: nn.Module) -> None:
    before = copy.deepcopy(student.state_dict())
    student.train()
    loader = ZeroShotLoader(student, SHAPE, GENERATOR)
    for _ in loader:
        pass
    after = student.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert student.training
    assert all(p.requires_grad for p in student.parameters())
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("config", [GENERATOR, MIXED, DISTILLED], ids=lambda c: c.images)
def test_resume_is_exact(config: ZeroShotConfig, student: nn.Module, tmp_path: Path) -> None:
    whole = [images for images, _ in ZeroShotLoader(student, SHAPE, config)]
    first = ZeroShotLoader(student, SHAPE, config)
    iterator = iter(first)
    for _ in range(6):
        next(iterator)
    torch.save(first.state_dict(), tmp_path / "loader.pt")
    second = ZeroShotLoader(student, SHAPE, config)
    second.load_state_dict(torch.load(tmp_path / "loader.pt", weights_only=True))
    rest = [images for images, _ in second]
    assert len(rest) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole[6:], rest, strict=True))


def test_a_state_of_other_settings_is_refused(student: nn.Module) -> None:
    state = ZeroShotLoader(student, SHAPE, DISTILLED).state_dict()
    other = ZeroShotLoader(student, SHAPE, DISTILLED.with_changes(seed=1))
    with pytest.raises(ValueError, match="belongs to another config"):
        other.load_state_dict(state)


def test_ranks_have_their_own_noise_and_the_same_distilled_images(student: nn.Module) -> None:
    zero, one = (ZeroShotLoader(student, SHAPE, MIXED, rank=rank) for rank in (0, 1))
    a, b = next(iter(zero))[0], next(iter(one))[0]
    assert not torch.equal(a, b)
    assert zero.source is not None
    assert one.source is not None
    assert zero.source.pool is not None
    assert one.source.pool is not None
    assert torch.equal(zero.source.pool, one.source.pool)


def test_dtype(student: nn.Module) -> None:
    loader = ZeroShotLoader(student.double(), SHAPE, DISTILLED)
    images, targets = next(iter(loader))
    assert images.dtype == targets.dtype == torch.float64


def test_a_plain_model_is_refused(tiny: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="nothing was quantized: TinyResNet has no fake-quantizer"):
        ZeroShotLoader(tiny(), SHAPE)


def test_a_student_that_was_not_calibrated_is_refused_and_the_way_out_works(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    """Its activations would train in float, and nothing would say so."""
    model = tiny()
    student = make_student(model, ready=False)
    loader = ZeroShotLoader(student, SHAPE, DISTILLED, float_model=model)
    with pytest.raises(ValueError, match=r"ZeroShotLoader: (\d+) of \1 activations of") as caught:
        next(iter(loader))
    text = str(caught.value)
    assert "have no range (" in text
    assert "and would train in float. Calibrate it first: zaq_plugin.calibrate(" in text
    calibrate(student, list(loader.distill(64).split(32)))
    images, _ = next(iter(loader))
    quantized = student(images)
    set_switches(student, quantize=False)
    assert not torch.equal(quantized, student(images))


def test_an_activation_that_no_batch_reached_is_warned_of(student: nn.Module) -> None:
    slot = activation_slots(student)[-1]
    slot.module.reset_min_max_vals()
    slot.module.disable_fake_quant()
    with pytest.warns(UserWarning, match=rf"1 of \d+ .* no range and stay float \({slot.name}\)"):
        next(iter(ZeroShotLoader(student, SHAPE, GENERATOR)))


@pytest.mark.parametrize("config", [GENERATOR, DISTILLED], ids=lambda c: c.images)
def test_images_that_the_teacher_does_not_take_are_told(
    config: ZeroShotConfig, student: nn.Module
) -> None:
    loader = ZeroShotLoader(student, (1, 8, 8), config)
    expected = r"image_shape=\(1, 8, 8\): TinyResNet does not take .* \(2, 1, 8, 8\) of float32"
    with pytest.raises(ValueError, match=expected) as caught:
        next(iter(loader))
    assert "the shape that it was trained on, for images (n, 3, " in str(caught.value)
    with pytest.raises(ValueError, match=expected):
        loader.distill(2)


def test_a_student_that_is_switched_off_is_refused(student: nn.Module) -> None:
    set_switches(student, quantize=False)
    with pytest.raises(ValueError, match=r"all \d+ fake-quantizers .* are switched off"):
        next(iter(ZeroShotLoader(student, SHAPE, GENERATOR)))


def test_ranges_may_be_learned_while_training_as_torchs_qat_does(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    student = make_student(tiny(), ready=False)
    set_switches(student, observe=True, quantize=True)
    images, _ = next(iter(ZeroShotLoader(student, SHAPE, GENERATOR)))
    student(images)
    assert all(has_range(slot.module) for slot in activation_slots(student))


def test_several_outputs(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    class Heads(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            map_ = self.part.stage1(self.part.relu(self.part.stem(x)))
            return {"maps": [map_, map_.mean(1, keepdim=True)], "logits": [self.part(x)]}

    student = Heads(make_student(tiny()))
    set_switches(student, observe=False)
    loader = ZeroShotLoader(student, SHAPE, GENERATOR.with_changes(alpha=0.0, feature_weight=0.0))
    images, targets = next(iter(loader))
    output = student(images)
    parts = [
        (t.detach(), s)
        for t, s in zip(
            [*targets["maps"], *targets["logits"]],
            [*output["maps"], *output["logits"]],
            strict=True,
        )
    ]
    expected = sum(float((t - s).abs().mean()) for t, s in parts) / 3
    assert float(loader.loss(output, targets)) == pytest.approx(expected, rel=1e-5)


def test_float_model_guides_the_images(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    """A student with folded BatchNorms has forgotten the statistics; the float model has not."""
    model = tiny()
    student = make_student(model)
    config = GENERATOR.with_changes(warmup_steps=30, generator_lr=1e-2, beta=0.0)

    def after_warm_up(float_model: nn.Module | None) -> float:
        loader = ZeroShotLoader(student, SHAPE, config, float_model=float_model)
        loader.prepare()
        assert loader.adversary is not None
        from zaq_plugin.zero_shot.statistics import BatchNormLoss

        loss = BatchNormLoss(model)
        with torch.no_grad(), loss.recording():
            model(loader.adversary.sample())
        return float(loss.value())

    assert after_warm_up(copy.deepcopy(model)) < 0.7 * after_warm_up(None)
