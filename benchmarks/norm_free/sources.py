"""Images for networks without BatchNorm: what papers move pixels by, in the same eighty steps.

Each aim is a loss of what one forward pass does, as `zaq_plugin.zero_shot.statistics` has one of
BatchNorms. Transformers are watched at attention, networks without it at their LayerNorms; one with
neither has no aim, and its images are what they start from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.norm_free.attention import Attention, watching_attention
from zaq_plugin.zero_shot.distill import total_variation
from zaq_plugin.zero_shot.images import ImageFormat, dead_leaves

LR = 0.1
"""Adam's rate on the pixels, relative to the spread of natural images, as in `distill_images`."""


@dataclass(frozen=True)
class Seen:
    """What one forward pass showed.

    Attributes:
        attention: Its calls of attention, in order.
        norms: LayerNorms, each with its output as tokens (B, T, C).
        logits: (B, classes).
    """

    attention: list[Attention]
    norms: list[tuple[nn.LayerNorm, Tensor]]
    logits: Tensor


Aim = Callable[[Seen, torch.Generator], Tensor]
"""From what was seen to a loss, a scalar; the source is of what it draws."""


def patch_similarity(seen: Seen, rng: torch.Generator) -> Tensor:
    """-H of the patches' cosine similarities, mean over images and blocks.

    Li et al., Patch Similarity Aware Data-Free Quantization for Vision Transformers (ECCV 2022,
    arXiv 2203.02250), equations 5 to 8: a Gaussian kernel density of the similarities of the
    attention's outputs, and its entropy. Of each image 256 pairs are drawn. Without attention the
    LayerNorms' outputs take its place.
    """
    found = [call.tokens for call in seen.attention] or [tokens for _, tokens in seen.norms]
    grid, width = torch.linspace(-1, 1, 48), 0.08
    total = torch.zeros(())
    for tokens in found:
        unit = F.normalize(tokens, dim=-1)
        first, second = torch.randint(tokens.shape[1], (2, 256), generator=rng)
        similar = (unit[:, first] * unit[:, second])[:, first != second].sum(-1)
        density = torch.exp(-(similar[:, :, None] - grid).square() / (2 * width**2)).mean(1)
        share = density / density.sum(1, keepdim=True).clamp(min=1e-12)
        total = total + (share * (share + 1e-12).log()).sum(1).mean() / len(found)
    return total


def token_statistics(seen: Seen, rng: torch.Generator) -> Tensor:
    """How far channels behind LayerNorms are from what its weights say, mean over LayerNorms.

    A LayerNorm's output w_c x + b_c has mean b_c and deviation |w_c| in channel c over all tokens,
    if all channels of x are alike: what BatchNorm remembers, by its affine part alone.
    """
    parts = []
    for norm, tokens in seen.norms:
        deviation, mean = torch.std_mean(tokens, (0, 1))
        gap = (mean - norm.bias).square().mean() + (deviation - norm.weight.abs()).square().mean()
        parts.append(gap)
    return torch.stack(parts).mean() if parts else torch.zeros(())


class AttentionPrior:
    """Distance of attention maps from random ones, mean over the later half of the blocks.

    Zhong et al., Semantics Alignment and Reinforcement for Data-Free Quantization of Vision
    Transformers (ICCV 2025, arXiv 2412.16553), section 4.1: for each image and head a mixture of
    one to five Gaussians on the patches; the class token's row is moved there, or the queries' mean
    where there is none. Their optimisation of image parts for several classes is left out.
    """

    def __init__(self) -> None:
        self.priors: dict[int, Tensor] = {}

    def __call__(self, seen: Seen, rng: torch.Generator) -> Tensor:
        """The loss; priors are drawn once."""
        total = torch.zeros(())
        later = seen.attention[len(seen.attention) // 2 :]
        for index, call in enumerate(later):
            weights = call.weights
            count = weights.shape[-1]
            has_class = math.isqrt(count) ** 2 != count
            row = weights[:, :, 0, 1:] if has_class else weights.mean(2)
            row = row / row.sum(-1, keepdim=True)
            if index not in self.priors:
                side = math.isqrt(row.shape[-1])
                self.priors[index] = _mixtures(len(row), row.shape[1], side, rng)
            gap = (row - self.priors[index]).square().sum(-1).mean()
            total = total + 10 * gap / len(later)
        return total


def _mixtures(images: int, heads: int, side: int, rng: torch.Generator) -> Tensor:
    """(images, heads, side * side), each sums to one."""
    y, x = torch.meshgrid(*(torch.linspace(0, 1, side),) * 2, indexing="ij")
    count = torch.randint(1, 6, (images, heads, 1, 1), generator=rng)
    total = torch.zeros(images, heads, side, side)
    for index in range(5):
        centre = torch.rand(2, images, heads, 1, 1, generator=rng)
        width = 0.05 + 0.25 * torch.rand(2, images, heads, 1, 1, generator=rng)
        far = ((x - centre[0]) / width[0]).square() + ((y - centre[1]) / width[1]).square()
        total = torch.maximum(total, torch.exp(-far / 2) * (index < count))
    flat = total.flatten(2)
    return flat / flat.sum(-1, keepdim=True)


class Classes:
    """Cross-entropy towards a class drawn for each image, once."""

    def __init__(self) -> None:
        self.drawn: Tensor | None = None

    def __call__(self, seen: Seen, rng: torch.Generator) -> Tensor:
        """The loss."""
        if self.drawn is None:
            count, classes = seen.logits.shape
            self.drawn = torch.randint(classes, (count,), generator=rng)
        return F.cross_entropy(seen.logits, self.drawn)


@dataclass(frozen=True)
class Source:
    """A recipe.

    Attributes:
        start: ``leaves`` or ``noise``.
        aims: Each with its weight; functions without arguments that make them.
        smooth: Weight of the total variation.
        whole: The share of images that are moved; the others stay what they start from.
        networks: Whose forward pass has what the aims watch; all, if empty.
    """

    start: str = "leaves"
    aims: tuple[tuple[float, Callable[[], Aim]], ...] = ()
    smooth: float = 0.0
    whole: float = 1.0
    networks: tuple[str, ...] = ()

    def suits(self, network: str) -> bool:
        """Whether its aims see anything of a network."""
        return not self.networks or network in self.networks


def _patches() -> Aim:
    return patch_similarity


def _tokens() -> Aim:
    return token_statistics


ATTENTION, NORMS = ("vit",), ("vit", "convnext")
SOURCES: dict[str, Source] = {
    "noise": Source("noise"),
    "leaves": Source(),
    "patches": Source(aims=((1.0, _patches),), networks=NORMS),
    "patches, from noise": Source("noise", ((1.0, _patches), (0.5, Classes)), 0.05, networks=NORMS),
    "attention": Source(aims=((1.0, AttentionPrior),), networks=ATTENTION),
    "attention, from noise": Source(
        "noise", ((1.0, AttentionPrior), (0.5, Classes)), networks=ATTENTION
    ),
    "tokens": Source(aims=((1.0, _tokens),), networks=NORMS),
    "tokens and leaves": Source(aims=((1.0, _tokens),), whole=0.5, networks=NORMS),
}
"""``leaves`` is what the package shows such networks. From noise, with classes (and smoothness,
for patches) is as the papers do it."""


def make(
    source: Source, model: nn.Module, count: int, images: ImageFormat, seed: int, steps: int = 80
) -> Tensor:
    """(count, C, H, W), between black and white, in the model's normalisation.

    Args:
        source: The recipe.
        model: In evaluation mode, without parameters that require a gradient.
        count: How many.
        images: Their format.
        seed: Of everything drawn.
        steps: Of Adam, with a cosine rate.
    """
    rng, statistics = torch.Generator().manual_seed(seed), images.statistics
    if source.start == "leaves":
        x = dead_leaves(count, images.shape, rng)
    else:
        x = torch.randn(count, *images.shape, generator=rng)
    x = statistics.clamp(x * statistics.scale(x) + statistics.shift(x))
    if not source.aims:
        return x
    moved = round(source.whole * count)
    pixels = x[:moved].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([pixels], LR * float(statistics.scale().mean()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    aims = [(weight, maker()) for weight, maker in source.aims]
    for _ in range(steps):
        shown = statistics.clamp(pixels)
        seen = look(model, shown)
        loss = source.smooth * total_variation(shown)
        for weight, aim in aims:
            loss = loss + weight * aim(seen, rng)
        if not loss.requires_grad:
            return x
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return torch.cat([statistics.clamp(pixels).detach(), x[moved:]])


def look(model: nn.Module, images: Tensor) -> Seen:
    """One forward pass, watched."""
    norms: list[tuple[nn.LayerNorm, Tensor]] = []

    def keep(norm: nn.Module, inputs: object, output: Tensor) -> None:
        assert isinstance(norm, nn.LayerNorm)
        if output.dim() < 3:  # behind the pooling
            return
        channels = norm.normalized_shape[-1]
        first = output.dim() == 4 and output.shape[1] == channels != output.shape[-1]
        tokens = output.flatten(2).mT if first else output.flatten(1, -2)
        norms.append((norm, tokens))

    handles = [m.register_forward_hook(keep) for m in model.modules() if type_is_norm(m)]
    try:
        with watching_attention() as calls:
            logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return Seen(calls, norms, logits)


def type_is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm with weights, over tokens or over channels."""
    return isinstance(module, nn.LayerNorm) and module.elementwise_affine
