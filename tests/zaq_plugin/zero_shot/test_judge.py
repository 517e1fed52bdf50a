from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.zero_shot.discrepancy import all_outputs
from zaq_plugin.zero_shot.judge import Judge


class Shifted(nn.Module):
    """Answers with its input, plus a parameter and fixed noise."""

    def __init__(self, shift: float, noise: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(len(x))
        wobble = torch.randn(x.shape, generator=rng) * self.noise
        return x + wobble + self.shift * torch.tensor([1.0, 0.0, 0.0])


def judge(images: int = 64, loss: str = "l1") -> Judge:
    x = torch.randn(images, 3, generator=torch.Generator().manual_seed(0))
    return Judge(Shifted(0.0), x, all_outputs, loss)


def test_the_best_state_wins() -> None:
    referee = judge()
    for shift, label in ((1.0, "start"), (0.5, "step 1"), (2.0, "step 2"), (0.25, "step 3")):
        referee.look(Shifted(shift), label)
    assert [v.accepted for v in referee.history] == [True, True, False, True]
    student = Shifted(9.0)
    assert referee.restore_best(student).label == "step 3"
    assert float(student.shift.detach()) == 0.25


@pytest.mark.parametrize("loss", ["l1", "kl"])
def test_measures_are_those_of_float64(loss: str) -> None:
    referee = judge(loss=loss)
    verdict = referee.look(Shifted(0.7), "start")
    p = referee.images.double()
    q = p + torch.tensor([0.7, 0.0, 0.0])
    if loss == "l1":
        expected = (p - q).abs().mean()
    else:
        a, b = p.softmax(1), q.softmax(1)
        expected = (a * (a / b).log()).sum(1).mean()
    assert verdict.divergence == pytest.approx(float(expected), rel=1e-5)
    assert verdict.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))


def test_the_untrained_state_is_displaced_only_beyond_doubt() -> None:
    """Better on average by less than the noise of 64 images is not better."""
    referee = judge(loss="kl")
    first = referee.look(Shifted(0.0, noise=0.5), "start")
    x = referee.images.clone()
    doubtful = Shifted(0.0, noise=0.498)
    verdict = referee.look(doubtful, "step 1")
    assert verdict.divergence < first.divergence
    gap_is_sure = verdict.accepted
    assert torch.equal(x, referee.images)
    # 0.4 % less of the very same noise is a sure gain; other noise of the same size is not.
    assert gap_is_sure
    other = judge(loss="kl")
    other.look(Shifted(0.0, noise=0.5), "start")

    class Other(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            rng = torch.Generator().manual_seed(4321)
            return x + torch.randn(x.shape, generator=rng) * 0.49

    student = Other(0.0)
    verdict = other.look(student, "step 1")
    assert not verdict.accepted


def test_the_best_state_too_is_displaced_only_beyond_doubt() -> None:
    """Of two states of equal noise the luckier one is not better."""

    class Noisy(nn.Module):
        def __init__(self, noise: float, seed: int) -> None:
            super().__init__()
            self.noise, self.seed = noise, seed

        def forward(self, x: Tensor) -> Tensor:
            rng = torch.Generator().manual_seed(self.seed)
            return x + self.noise * torch.randn(x.shape, generator=rng)

    referee = judge(images=256, loss="kl")
    referee.look(Noisy(2.0, 0), "start")
    assert referee.look(Noisy(0.5, 1), "reconstructed").accepted
    others = [referee.look(Noisy(0.5, seed), f"step {seed}") for seed in range(2, 12)]
    assert min(v.divergence for v in others) < referee.history[1].divergence
    assert not any(v.accepted for v in others)


def test_agreement_must_not_fall() -> None:
    """A smaller divergence bought with other top classes does not displace the start."""
    x = torch.tensor([[1.0, 0.9, 0.0]] * 32)

    class Fixed(nn.Module):
        def __init__(self, values: list[float]) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.tensor(values))

        def forward(self, x: Tensor) -> Tensor:
            return self.values.expand(len(x), 3)

    referee = Judge(Shifted(0.0), x, all_outputs, "l1")
    referee.look(Fixed([2.0, 0.9, 0.0]), "start")
    assert not referee.look(Fixed([1.0, 1.05, 0.0]), "step 1").accepted
    assert referee.look(Fixed([1.2, 0.9, 0.0]), "step 2").accepted


def test_nan_never_wins() -> None:
    referee = judge()
    referee.look(Shifted(1.0), "start")
    assert not referee.look(Shifted(float("nan")), "step 1").accepted


def test_state_round_trip() -> None:
    referee, again = judge(), judge()
    referee.look(Shifted(1.0), "start")
    referee.look(Shifted(0.5), "step 1")
    again.load_state_dict(referee.state_dict())
    assert again.history == referee.history
    assert again.best == referee.best
    assert not again.look(Shifted(0.6), "step 2").accepted


def test_nothing_judged() -> None:
    with pytest.raises(ValueError, match="nothing was judged yet"):
        judge().restore_best(Shifted(0.0))


@pytest.mark.parametrize(("distance", "accepted"), [(0.2, True), (0.7, False)])
def test_where_agreement_cannot_rise_halved_divergence_is_enough(
    distance: float, accepted: bool
) -> None:
    """First and later state disagree on one image each, not the same: the gain is 0, and noisy."""

    class Answers(nn.Module):
        def __init__(self, offset: float, wrong: int | None) -> None:
            super().__init__()
            self.offset, self.wrong = nn.Parameter(torch.tensor(offset)), wrong

        def forward(self, x: Tensor) -> Tensor:
            out = x + self.offset * torch.tensor([1.0, -1.0, 1.0])
            if self.wrong is not None:
                out[self.wrong] = out[self.wrong].flip(0)
            return out

    x = torch.tensor([[9.0, 0.0, 8.9]]).repeat(64, 1)
    referee = Judge(Answers(0.0, None), x, all_outputs, "l1")
    first = referee.look(Answers(1.0, 3), "start")
    later = referee.look(Answers(distance, 5), "later")
    assert first.agreement == later.agreement < 1
    assert later.divergence < first.divergence
    assert (later.divergence < 0.5 * first.divergence) == accepted
    assert later.accepted == accepted


@pytest.mark.parametrize(("common", "accepted"), [(0.3, True), (1.0, False)])
def test_one_image_with_most_of_the_divergence_hides_nothing(common: float, accepted: bool) -> None:
    """One image of 64 is 40 times as far off as the others, and comes near in both cases."""

    class Answers(nn.Module):
        def __init__(self, most: float, one: float) -> None:
            super().__init__()
            self.most, self.one = nn.Parameter(torch.tensor(most)), one

        def forward(self, x: Tensor) -> Tensor:
            out = x + self.most
            out[0] = x[0] + self.one
            return out

    x = torch.tensor([[9.0, 0.0, 1.0]]).repeat(64, 1)
    referee = Judge(Answers(0.0, 0.0), x, all_outputs, "l1")
    first = referee.look(Answers(1.0, 100.0), "start")
    later = referee.look(Answers(common, 1.0), "later")
    gap = torch.tensor([1.0 - 100.0] + [common - 1.0] * 63)
    assert -gap.mean() < 2 * gap.std(correction=0) / 8  # the mean alone is in doubt
    assert later.divergence < 0.5 * first.divergence
    assert later.accepted == accepted


def test_a_state_with_as_good_a_claim_needs_no_more_than_to_be_better() -> None:
    """Other noise, a tenth smaller: better on average, within the noise of 64 images."""

    class Other(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            rng = torch.Generator().manual_seed(4321)
            return x + torch.randn(x.shape, generator=rng) * self.noise

    for noise, certainty, accepted in ((0.44, None, False), (0.44, 0.0, True), (0.6, 0.0, False)):
        referee = judge(loss="kl")
        first = referee.look(Shifted(0.0, noise=0.5), "reconstructed")
        other = referee.look(Other(0.0, noise=noise), "gptq", certainty=certainty)
        assert (other.divergence < first.divergence) is (noise < 0.5)
        assert other.accepted is accepted, (noise, certainty)


class One(nn.Module):
    """One output: the sum of its input, scaled and shifted by noise of its own."""

    def __init__(self, error: float, mask: bool) -> None:
        super().__init__()
        self.error, self.mask = nn.Parameter(torch.tensor(error)), mask

    def forward(self, x: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(len(x))
        answer = x if self.mask else x.sum(1, keepdim=True)
        return answer + self.error * torch.randn(answer.shape, generator=rng)


@pytest.mark.parametrize("mask", [False, True])
def test_one_output_is_judged_by_its_error(mask: bool) -> None:
    shape = (100, 1, 4, 4) if mask else (100, 5)  # more than one batch of the judge's
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    referee = Judge(One(0.0, mask), x, all_outputs, "kl")
    verdicts = [referee.look(One(e, mask), str(e)) for e in (0.4, 0.1, 0.8, 0.0)]
    assert [v.accepted for v in verdicts] == [True, True, False, True]
    near, far = verdicts[1], verdicts[2]
    assert 0 < near.divergence < verdicts[0].divergence < far.divergence
    assert far.agreement < verdicts[0].agreement < near.agreement < 1
    assert (verdicts[3].divergence, verdicts[3].agreement) == (0, 1)
    target = torch.cat([part[0] for part in referee.targets]).double()
    noise = [
        torch.randn(len(p), *target.shape[1:], generator=torch.Generator().manual_seed(len(p)))
        for p in x.split(64)
    ]
    expected = (0.4 * torch.cat(noise)).double().square().mean() / target.var(correction=0)
    assert verdicts[0].divergence == pytest.approx(float(expected), rel=1e-4)
