"""Models that normalise their input in place: the user's tensors stay, and so do the results."""

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin import UniformSpec, ZeroShotConfig, zero_shot_finetune
from zaq_plugin.ptq import fold_batch_norm, simulate
from zaq_plugin.ptq.equalise import equalise
from zaq_plugin.ptq.mixed_precision import kl_sensitivities
from zaq_plugin.pwlq import sqnr_db
from zaq_plugin.zero_shot import DistillOptions, all_outputs, distill_images
from zaq_plugin.zero_shot.judge import Judge

SHAPE = (3, 8, 8)


class Normalises(nn.Module):
    """In place, or as it should be done; one for tracing, one that only export follows."""

    def __init__(self, inside: bool, traced: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.traced = inside, traced
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.next = nn.Conv2d(6, 6, 3)
        self.hidden, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.uniform_(self.last.running_var, 0.5, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if not self.traced and x.shape[0] > 100:
            return x
        if self.inside:
            x.sub_(120.0)
            x /= 60.0
        else:
            x = (x - 120.0) / 60.0
        x = self.next(self.norm(self.conv(x)).relu())
        return self.last(self.hidden(x.relu().mean((2, 3))))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(3)) * 255


@pytest.mark.parametrize("traced", [True, False])
@torch.no_grad()
def test_folding_and_equalisation(traced: bool, images: Tensor) -> None:
    model, original = Normalises(True, traced), images.clone()
    right = Normalises(False)(original)
    folded = fold_batch_norm(model, (images,))
    assert torch.equal(images, original)
    assert len(folded.zaq_folding.folded) == 2
    assert sqnr_db(right, folded(images.clone())) > 100
    done = equalise(folded, (images,))
    assert torch.equal(images, original)
    assert ("conv", "next") in [(p.first, p.second) for p in done.pairs]
    assert sqnr_db(right, done.model(images.clone())) > 100


def test_distillation_sees_what_it_would_see_without(images: Tensor) -> None:
    for options in (
        DistillOptions(steps=3, batch_size=4, total_variation=0.1, l2=0.1),
        DistillOptions(steps=2, batch_size=4, method="generator"),
    ):
        batches = [
            distill_images(
                Normalises(inside), 4, SHAPE, options=options,
                rng=torch.Generator().manual_seed(0),
            )
            for inside in (False, True)
        ]  # fmt: skip
        torch.testing.assert_close(batches[1], batches[0], rtol=1e-4, atol=1e-5)


def test_the_judge_and_sensitivities(images: Tensor) -> None:
    original = images.clone()
    figures = []
    for inside in (False, True):
        judge = Judge(Normalises(inside), images, all_outputs, "kl")
        student = Normalises(inside)
        with torch.no_grad():
            student.hidden.weight.mul_(1.2)
        figures.append([judge.look(student, label).divergence for label in "ab"])
        assert torch.equal(images, original)
        folded = fold_batch_norm(Normalises(inside), (images[:2],))
        cost, _ = kl_sensitivities(folded, [UniformSpec(3)], images, adapter=all_outputs)
        by_layer = {one.layer: one.divergence for one in cost}
        figures[-1] += [by_layer[n] for n in ("conv", "next", "hidden")]
        assert torch.equal(images, original)
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)
    assert figures[0][0] == figures[0][1] > 0


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_zero_shot_training(preset: str, images: Tensor) -> None:
    original, figures = images.clone(), []
    for inside in (False, True):
        student = simulate(
            fold_batch_norm(Normalises(inside), (images[:2].clone(),)), UniformSpec(4), 8
        )
        config = ZeroShotConfig.preset(
            preset, seed=0, steps=2, batch_size=4, distilled_images=8, validation_images=4,
            calibration_images=8, warmup_steps=2, reconstruct_iterations=3,
            reconstruct_batch_size=4, validate_every=2,
        )  # fmt: skip
        result = zero_shot_finetune(
            student,
            config,
            image_shape=SHAPE,
            float_model=Normalises(inside),
            images=images if preset == "fast" else None,
            progress=False,
        )
        assert torch.equal(images, original)
        figures.append([v.divergence for v in result.verdicts])
        with torch.no_grad():
            figures[-1].append(sqnr_db(Normalises(False)(original), student(original.clone())))
    assert figures[1] == pytest.approx(figures[0], rel=0.05)
