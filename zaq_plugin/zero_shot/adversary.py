"""The generator's side of the game: warm-up, adversarial steps, collapse and restart."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from zaq_plugin.student.fake_quantizers import is_weight_quantizer
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.discrepancy import (
    LayerWeights,
    OutputAdapter,
    activation_regulariser,
    feature_discrepancy,
    mean_over,
    output_discrepancy,
    teacher_divergence,
)
from zaq_plugin.zero_shot.distill import low_pass, swinging
from zaq_plugin.zero_shot.generator import Generator
from zaq_plugin.zero_shot.images import ImageFormat
from zaq_plugin.zero_shot.statistics import BatchNormLoss
from zaq_plugin.zero_shot.taps import TapSet

logger = logging.getLogger(__name__)


class Adversary:
    """G with its optimizer.

    Args:
        config: The settings.
        images: Their format.
        teacher: P, whose features L_a excites.
        memory: The float model with its BatchNorms (the teacher itself, if it has them).
        adapter: From the model's output to tensors.
        rng: CPU source of noise; each rank has its own.
        device: Where the generator lives.
    """

    def __init__(
        self,
        config: ZeroShotConfig,
        images: ImageFormat,
        teacher: nn.Module,
        memory: nn.Module,
        adapter: OutputAdapter,
        rng: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config, self.teacher, self.memory = config, teacher, memory
        self.format, self.statistics = images, images.statistics
        self.adapter, self.rng, self.device = adapter, rng, device
        self.dtype = next((p.dtype for p in teacher.parameters()), torch.float32)
        self.bn_loss = BatchNormLoss(memory)
        self.restarts: list[int] = []
        self.reference_diversity = 0.0
        self.latents: Tensor | None = None
        self._build()

    def _build(self) -> None:
        config = self.config
        # The first weights are the same on every rank: seeded by the config and the restarts.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed * 1009 + len(self.restarts))
            self.generator = Generator(
                self.format.shape,
                config.generator.latent_dim,
                config.generator.width,
                self.statistics,
            )
        self.generator.to(self.device).train()
        groups: list[dict[str, Any]] = [{"params": list(self.generator.parameters())}]
        if config.generator.latent_lr > 0:
            self.latents = self.generator.noise(config.batch_size, self.rng, self.device)
            self.latents.requires_grad_(True)
            groups.append({"params": [self.latents], "lr": config.generator.latent_lr})
        self.optimizer = torch.optim.Adam(groups, lr=config.generator.lr)

    def images(self) -> Tensor:
        """A new batch, with gradients to the generator, (batch_size, C, H, W)."""
        z = self.generator.noise(self.config.batch_size, self.rng, self.device)
        if self.latents is not None:
            # Half explores, half is refined together with the generator (Genie).
            half = self.config.batch_size // 2
            z = torch.cat([self.latents[:half], z[half:]])
        x = self.statistics.clamp(self.generator(z))
        if self.config.source.low_pass > 0:
            x = low_pass(x, self.config.source.low_pass)
        return x.to(self.dtype)

    def sample(self) -> Tensor:
        """A new batch without gradients."""
        with torch.no_grad():
            return self.images()

    def warm_up(self, steps: int, report: Callable[[int, float], None] | None = None) -> float:
        """Train G on BatchNorm statistics (and L_a) alone; returns the last loss."""
        last = 0.0
        for step in range(steps):
            loss, _ = self._own_loss(self.images(), beta=self.config.losses.beta or 0.1)
            self._update(loss)
            last = float(loss.detach())
            if report is not None:
                report(step + 1, last)
        self.reference_diversity = self.diversity(self.sample())
        return last

    def step(
        self,
        student: nn.Module,
        student_taps: TapSet | None,
        teacher_taps: TapSet | None,
        weights: LayerWeights | None,
    ) -> dict[str, float]:
        """One step of G: minimise -D_o - α D_f + β L_a, plus the BatchNorm term; returns the terms.

        Args:
            student: Q, run as it is (no DDP around it).
            student_taps, teacher_taps, weights: For D_f; None without it.
        """
        config = self.config
        x = self.images()
        own, terms = self._own_loss(x, beta=config.losses.beta, taps=teacher_taps)
        teacher_out = self.adapter(self._teacher_output)
        student_out = self.adapter(student(x.clone()))  # a model may write into its input
        measure = output_discrepancy if config.generator.loss == "l1" else teacher_divergence
        d_o = mean_over(measure, teacher_out, student_out)
        gap = d_o
        terms["D_o"] = float(d_o.detach())
        if config.losses.alpha > 0 and student_taps and teacher_taps and weights is not None:
            d_f, _ = feature_discrepancy(
                self._teacher_features, student_taps.take(), weights, config.losses.relation_norm
            )
            gap = gap + config.losses.alpha * d_f
            terms["D_f"] = float(d_f.detach())
        if student_taps is not None:
            student_taps.clear()
        if config.generator.margin > 0:
            # Between agreement and disagreement: nothing is gained beyond the margin.
            gap = gap.clamp(max=config.generator.margin)
        loss = own - config.generator.gamma * gap
        terms["generator"] = float(loss.detach())
        self._update(loss)
        return terms

    def _own_loss(
        self, x: Tensor, beta: float, taps: TapSet | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """What G wants for the images' own sake; runs the teacher."""
        config = self.config
        terms: dict[str, float] = {}
        features: list[Tensor] = []
        handle = _last_map_hook(self.teacher, features)
        try:
            with swinging(self.memory, self.rng, config.source.swing), self.bn_loss.recording():
                if self.memory is self.teacher:
                    self._teacher_output = self.teacher(x.clone())
                else:
                    self._teacher_output = self.teacher(x.clone())
                    if len(self.bn_loss) and config.generator.bn_weight > 0:
                        self.memory(x.clone())
                value = self.bn_loss.value().to(x)
        finally:
            handle()
        self._teacher_features = taps.take() if taps is not None else {}
        loss = config.generator.bn_weight * value
        terms["bn"] = float(value.detach())
        if beta > 0 and features:
            l_a = activation_regulariser(features[-1])
            loss = loss + beta * l_a
            terms["L_a"] = float(l_a.detach())
        if config.generator.diversity_weight > 0 and features:
            spread = batch_similarity(features[-1])
            loss = loss + config.generator.diversity_weight * spread
            terms["similarity"] = float(spread.detach())
        return loss, terms

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            loss.backward()
            average_gradients(self.generator.parameters())
            self.optimizer.step()

    def diversity(self, images: Tensor) -> float:
        """Mean over pixels of the deviation between a batch's images; the ranks' mean."""
        value = images.std(dim=0).mean().detach()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(value)
            value = value / torch.distributed.get_world_size()
        return float(value)

    def restart_if_collapsed(self, images: Tensor, step: int) -> bool:
        """Start a fresh, warmed-up generator if the images of a batch have become alike.

        Says so in the log. A generator whose output is not finite is restarted, too.
        """
        if self.config.generator.restart_below <= 0 or self.reference_diversity <= 0:
            return False
        now = self.diversity(images)
        if now >= self.config.generator.restart_below * self.reference_diversity:
            return False
        logger.warning(
            "step %d: the generator has collapsed (diversity %.3g, %.3g after its warm-up); "
            "it is restarted.",
            step,
            now,
            self.reference_diversity,
        )
        self.restarts.append(step)
        self._build()
        self.warm_up(max(1, self.config.generator.warmup_steps))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {
            "generator": copy.deepcopy(self.generator.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "latents": None if self.latents is None else self.latents.detach().clone(),
            "restarts": list(self.restarts),
            "reference_diversity": self.reference_diversity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self.restarts = list(state["restarts"])
        self.generator.load_state_dict(state["generator"])
        if self.latents is not None and state["latents"] is not None:
            with torch.no_grad():
                self.latents.copy_(state["latents"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reference_diversity = float(state["reference_diversity"])


def batch_similarity(features: Tensor) -> Tensor:
    """Mean squared cosine similarity between the samples of a batch, in -0..1; a scalar.

    For models without BatchNorm statistics: a generator that lowers it makes different images.
    """
    flat = nn.functional.normalize(features.flatten(1), dim=1)
    gram = flat @ flat.t()
    count = len(features)
    if count < 2:
        return gram.sum() * 0
    off = gram.square().sum() - gram.diagonal().square().sum()
    return off / (count * (count - 1))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Mean of the gradients over the ranks, if there are several."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    size = torch.distributed.get_world_size()
    for parameter in parameters:
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= size


def _last_map_hook(model: nn.Module, maps: list[Tensor]) -> Callable[[], None]:
    """Keep the last feature map of the next forward pass: the last one with positions."""
    handles = []

    def keep(_: nn.Module, args: Any, output: object) -> None:
        positions = isinstance(output, Tensor) and output.dim() >= 3 and output[0, 0].numel() > 1
        if positions and isinstance(output, Tensor) and output.is_floating_point():
            maps[:] = [output]

    for name, module in model.named_modules():
        weight = is_weight_quantizer(module) or isinstance(module, ParametrizationList)
        if name and not weight:
            handles.append(module.register_forward_hook(keep))

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove
