"""Images for networks without BatchNorm: what the aims measure, and what is compared."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data.norm_free import FixupResNet, Images, digits_images, trained
from benchmarks.norm_free.attention import Attention, watching_attention
from benchmarks.norm_free.run import compared, jobs_of, rows_of
from benchmarks.norm_free.sources import (
    SOURCES,
    AttentionPrior,
    Seen,
    look,
    make,
    patch_similarity,
    token_statistics,
)
from benchmarks.norm_free.tables import page
from zaq_plugin.zero_shot import ImageFormat


class Attending(nn.Module):
    """Patches of 4 x 4, one attention with a scale of its own, a LayerNorm and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(1, 8, 4, 4), nn.LayerNorm(8)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 5)
        self.last: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.patches(x).flatten(2).mT)
        q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.7)
        self.last = (v, out)
        logits: Tensor = self.head(out.transpose(1, 2).flatten(2).mean(1))
        return logits


def seen(tokens: Tensor, norm: nn.LayerNorm | None = None) -> Seen:
    norm = norm or nn.LayerNorm(tokens.shape[-1])
    return Seen([], [(norm, tokens)], torch.zeros(len(tokens), 2))


def test_attention_that_is_watched_is_what_the_model_multiplies_values_by() -> None:
    torch.manual_seed(0)
    model = Attending()
    found = look(model, torch.randn(3, 1, 16, 16))
    (call,) = found.attention
    value, out = model.last
    torch.testing.assert_close(call.weights @ value, out)
    assert call.tokens.shape == (3, 16, 8)
    assert [tokens.shape for _, tokens in found.norms] == [(3, 16, 8)]


def test_torchs_own_multi_head_attention_is_seen() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True).train()
    x = torch.randn(2, 5, 8)
    with watching_attention() as calls:
        layer(x, x, x, need_weights=False)
    assert len(calls) in (0, 1), "inside a call of torch's own, a mode may be off"
    with watching_attention() as calls:
        F.scaled_dot_product_attention(*(torch.randn(2, 2, 5, 4),) * 3)
    assert len(calls) == 1


def test_similarities_that_spread_have_more_entropy() -> None:
    rng = torch.Generator().manual_seed(0)
    alike = torch.ones(2, 20, 8)
    spread = torch.randn(2, 20, 8, generator=rng)
    same = float(patch_similarity(seen(alike), rng))
    # All similarities are 1: the density is one kernel, cut off at the grid's end.
    kernel = torch.exp(-(1 - torch.linspace(-1, 1, 48)).square() / (2 * 0.08**2))
    share = kernel / kernel.sum()
    assert same == pytest.approx(float((share * (share + 1e-12).log()).sum()), abs=1e-4)
    assert float(patch_similarity(seen(spread), rng)) < same - 0.5


def test_token_statistics_are_those_of_the_affine_part() -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 3.0, -1.0]))
    x = torch.randn(4, 50, 3)
    deviation, mean = torch.std_mean(x, (0, 1))
    fitting = (x - mean) / deviation * norm.weight + norm.bias
    rng = torch.Generator()
    assert float(token_statistics(seen(fitting, norm), rng)) == pytest.approx(0, abs=1e-9)
    moved = fitting + torch.tensor([3.0, 0.0, 0.0])
    assert float(token_statistics(seen(moved, norm), rng)) == pytest.approx(9 / 3, rel=1e-4)


def test_attention_that_is_its_prior_has_no_loss() -> None:
    rng = torch.Generator().manual_seed(0)
    aim = AttentionPrior()
    blank = Attention(torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16), torch.zeros(1), 1.0)
    logits = torch.zeros(2, 2)
    assert float(aim(Seen([blank], [], logits), rng)) > 0
    (prior,) = aim.priors.values()
    torch.testing.assert_close(prior.sum(-1), torch.ones(2, 3))
    # softmax(log p · I) is p, for every query.
    query = prior.clamp(min=1e-12).log().unsqueeze(2).expand(-1, -1, 16, -1)
    fitting = Attention(query, torch.eye(16).expand(2, 3, 16, 16), torch.zeros(1), 1.0)
    assert float(aim(Seen([fitting], [], logits), rng)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", SOURCES)
def test_images_are_pixels_repeat_and_are_moved_where_there_is_an_aim(name: str) -> None:
    torch.manual_seed(0)
    model = Attending().requires_grad_(False)
    kind = ImageFormat((1, 16, 16), (0.3,), (0.4,))
    first, again = (make(SOURCES[name], model, 4, kind, 3, steps=2) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (4, 1, 16, 16)
    assert torch.equal(first, kind.statistics.clamp(first))
    start = make(SOURCES[SOURCES[name].start], model, 4, kind, 3)
    moved = (first != start).flatten(1).any(1)
    expected = [bool(SOURCES[name].aims) and i < 4 * SOURCES[name].whole for i in range(4)]
    assert moved.tolist() == expected


def test_only_sources_with_an_aim_are_asked_for() -> None:
    asked = argparse.Namespace(
        network=["convnext-cifar", "fixup-digits"], seeds=[0], source=list(SOURCES),
        method=["pwlq"], bits=["4/8"], images=32,
    )  # fmt: skip
    by_network: dict[str, list[str]] = {"convnext-cifar": [], "fixup-digits": []}
    for of in jobs_of(asked):
        by_network[of["network"]].append(of["source"])
    assert by_network["fixup-digits"] == ["noise", "leaves"]
    assert "attention" not in by_network["convnext-cifar"]
    assert "tokens" in by_network["convnext-cifar"]


def test_a_trained_network_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.data.norm_free.BATCH", 480)
    whole = digits_images()
    images = Images(**{**vars(whole), "epochs": 1})
    first = trained("fixup", "digits", images, tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = trained("fixup", "digits", images, tmp_path)
    assert file.stat().st_mtime_ns == written
    assert torch.equal(first(images.test[:4]), again(images.test[:4]))
    shared = {tuple(x.flatten().tolist()) for x in images.train} & {
        tuple(x.flatten().tolist()) for x in images.held_back
    }
    assert not shared, "what chooses trains nothing"


def test_a_fixup_network_starts_as_a_network_without_its_branches() -> None:
    torch.manual_seed(0)
    model = FixupResNet(1)
    x = torch.randn(2, 1, 16, 16)
    stem = F.relu(model.conv1(x))
    for channels in (32, 64):
        stem = F.pad(stem[:, :, ::2, ::2], [0, 0, 0, 0, *[(channels - stem.shape[1]) // 2] * 2])
    torch.testing.assert_close(model(x), model.linear(stem.mean((2, 3))))


def test_agreement_and_divergence() -> None:
    expected = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert compared(expected, expected) == {"agreement": 100.0, "kl": 0.0}
    found = compared(-expected, expected)
    e = expected.double()
    apart = 2 * e + (-e).logsumexp(1, keepdim=True) - e.logsumexp(1, keepdim=True)
    assert found["agreement"] == 0.0
    assert found["kl"] == pytest.approx(float((e.softmax(1) * apart).sum(1).mean()), abs=1e-5)


def test_the_page_shows_test_images_where_they_were_measured(tmp_path: Path) -> None:
    def row(source: str, bits: str, agreement: float, **more: Any) -> dict[str, Any]:
        of = {"network": "vit-cifar", "source": source, "method": "pwlq+gptq", "bits": bits}
        return {
            "job": {**of, "seed": 0, "count": 32},
            "held_back": {"agreement": agreement, "kl": 0.001},
            "images_seconds": 1.0,
            "seconds": 2.0,
            **more,
        }

    measured = {"test": {"agreement": 95.0, "kl": 0.1, "top1": 40.0}, "float": 46.0}
    text = page([row("real", "8/8", 99.0, **measured), row("leaves", "4/8", 97.0)]).markdown()
    assert "float 46.0 % top-1" in text
    assert "| real | 95.00 |  | 1.0 | 2.0 |" in text
    assert "| leaves |  | 97.00 | 1.0 | 2.0 |" in text
    assert "| leaves |  | 1.00 | 1.0 | 2.0 |" in text
    file = tmp_path / "rows.jsonl"
    file.write_text('{"job": {"network": "vit-cifar"}}\n')
    assert rows_of(file)[0]["job"]["count"] == 32
