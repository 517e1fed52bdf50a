"""Where images come from: distilled ones, the generator, earlier batches; no data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zaq_plugin.zero_shot.adversary import Adversary
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.distill import distill_images
from zaq_plugin.zero_shot.feedback import Pair

Report = Callable[[str, int, int, float], None]
"""Takes a stage, a step, how many there are, and the loss."""


class ImageSource:
    """Draws batches as the config says; every random choice comes from one CPU generator.

    Args:
        config: The settings.
        pool: (N, C, H, W) distilled images, or None.
        adversary: The generator's side, or None.
        rng: CPU source of all choices.
    """

    def __init__(
        self,
        config: ZeroShotConfig,
        pool: Tensor | None,
        adversary: Adversary | None,
        rng: torch.Generator,
    ) -> None:
        if pool is None and adversary is None:
            raise ValueError("ImageSource: needs distilled images or a generator.")
        self.config, self.pool, self.adversary, self.rng = config, pool, adversary, rng
        self.replay: list[Tensor] = []

    def draw(self, step: int) -> Tensor:
        """A batch for one student step, (batch_size, C, H, W), augmented, without gradients."""
        return self._augment(self._raw(step))

    def _raw(self, step: int) -> Tensor:
        config = self.config
        if self.adversary is None:
            return self._from_pool(config.batch_size)
        if self.replay and self._chance(config.source.replay_share):
            batch = self.replay[self._integer(len(self.replay))]
        else:
            batch = self.adversary.sample()
            self._remember(batch, step)
        if self.pool is None:
            return batch
        fresh = round(config.source.generated_share * config.batch_size)
        return torch.cat([batch[:fresh], self._from_pool(config.batch_size - fresh)])

    def _remember(self, batch: Tensor, step: int) -> None:
        limit = self.config.source.replay_batches
        if limit < 1 or step % self.config.student_steps:
            return
        if len(self.replay) < limit:
            self.replay.append(batch)
        else:
            self.replay[self._integer(limit)] = batch

    def _from_pool(self, count: int) -> Tensor:
        assert self.pool is not None
        chosen = torch.randint(len(self.pool), (count,), generator=self.rng)
        return self.pool[chosen.to(self.pool.device)]

    def _augment(self, x: Tensor) -> Tensor:
        config = self.config
        if config.source.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=self.rng).to(x.device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        if config.source.shift > 0:
            reach = min(config.source.shift, x.shape[-1] - 1, x.shape[-2] - 1)
            down, right = torch.randint(2 * reach + 1, (2,), generator=self.rng).tolist()
            padded = torch.nn.functional.pad(x, (reach,) * 4, mode="reflect")
            x = padded[..., down : down + x.shape[-2], right : right + x.shape[-1]]
        if config.source.mixup > 0 and self._chance(config.source.mixup):
            share = torch.rand(len(x), 1, 1, 1, generator=self.rng).to(x.device)
            partner = torch.randperm(len(x), generator=self.rng).to(x.device)
            x = torch.lerp(x[partner], x, share)
        return x

    def _chance(self, share: float) -> bool:
        return float(torch.rand((), generator=self.rng)) < share

    def _integer(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.rng))

    def state_dict(self) -> dict[str, Any]:
        """Pool and replayed batches."""
        return {"pool": self.pool, "replay": list(self.replay)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`; tensors go to the device of the present pool or generator."""
        pool = state["pool"]
        if pool is not None:
            device = self.pool.device if self.pool is not None else pool.device
            self.pool = pool.to(device)
        device = self._device()
        self.replay = [batch.to(device) for batch in state["replay"]]

    def _device(self) -> torch.device:
        if self.adversary is not None:
            return self.adversary.device
        assert self.pool is not None
        return self.pool.device


class SyntheticImages:
    """All images of a run, and every random choice about them.

    Args:
        config: The settings.
        pair: The models, and the images' format.
        rank: Position among the processes of a distributed run; taken from torch.distributed by
            default.

    Attributes:
        shared_rng: Source of what the ranks share: distilled images.
        rng: Source of what is each one's own: noise, and which images make a batch.
        source: Of batches, once `prepare` was called.
        adversary: The generator's side, if there is one.
    """

    def __init__(self, config: ZeroShotConfig, pair: Pair, rank: int | None = None) -> None:
        self.config, self.pair = config, pair
        self.device, self.dtype = pair.device, pair.dtype
        rank = _rank() if rank is None else rank
        self.shared_rng = torch.Generator().manual_seed(config.seed)
        self.rng = torch.Generator().manual_seed(config.seed * 7919 + 1 + rank)
        self.source: ImageSource | None = None
        self.adversary: Adversary | None = None

    def prepare(self, pool: Tensor | None, report: Report | None, *, warm_up: bool = True) -> None:
        """Warm the generator up, distil images, whichever the config asks for.

        Args:
            pool: (N, C, H, W) images in place of distilled ones.
            report: Called with (stage, step, steps, loss).
            warm_up: False leaves the generator as it is, for a state to be loaded.
        """
        config, pair = self.config, self.pair
        pair.check_shape()
        if config.uses_generator:
            self.adversary = Adversary(
                config,
                pair.images,
                pair.teacher,
                pair.memory,
                pair.adapter,
                self.rng,
                pair.device,
            )
            if warm_up:
                steps = config.generator.warmup_steps
                self.adversary.warm_up(
                    steps,
                    None if report is None else lambda s, v: report("warm-up", s, steps, v),
                )
        if pool is None and config.uses_distilled:
            pool = self.distill(config.distillation.images, report)
        if pool is not None:
            pool = pool.to(self.device, self.dtype)
        self.source = ImageSource(
            config, pool if config.uses_distilled else None, self.adversary, self.rng
        )

    def distill(self, count: int, report: Report | None = None) -> Tensor:
        """Distilled images, the same on every rank, (count, C, H, W)."""
        config = self.config
        self.pair.check_shape()
        return distill_images(
            self.pair.memory,
            count,
            self.pair.images,
            options=config.distillation.options(config.source, min(128, max(2, count))),
            rng=self.shared_rng,
            device=self.device,
            progress=None if report is None else lambda s, n, v: report("distil", s, n, v),
        )

    def generated(self, count: int) -> Tensor:
        """New images of the generator, (count, C, H, W)."""
        assert self.adversary is not None
        batches = -(-count // self.config.batch_size)
        parts = [self.adversary.sample() for _ in range(batches)]
        return torch.cat(parts)[:count].to(self.dtype)

    def examples(self, count: int) -> Tensor | None:
        """Some of the images, on the CPU in float32: (n, C, H, W) with n at most ``count``."""
        if self.adversary is not None:
            return self.adversary.sample()[:count].float().cpu()
        pool = None if self.source is None else self.source.pool
        return None if pool is None else pool[:count].float().cpu()

    def batch(self, step: int) -> Tensor:
        """A batch for one student step, in the layout that trains fastest.

        Raises:
            ValueError: if nothing was prepared.
        """
        if self.source is None:
            raise ValueError("ZeroShotLoader: call prepare() first, or iterate over the loader.")
        images = self.source.draw(step).to(self.dtype)
        return images.contiguous(memory_format=torch.channels_last)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides which images come next."""
        assert self.source is not None
        return {
            "rng": self.rng.get_state(),
            "shared_rng": self.shared_rng.get_state(),
            "source": self.source.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`, after `prepare`."""
        assert self.source is not None
        self.source.load_state_dict(state["source"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        self.rng.set_state(state["rng"].cpu())
        self.shared_rng.set_state(state["shared_rng"].cpu())


def copies(pool: Tensor, times: int, rng: torch.Generator) -> Tensor:
    """More images from the same: the pool, its mirror image, then mixtures of random pairs.

    Args:
        pool: (N, C, H, W).
        times: How many versions of each image; 1 is the pool itself.
        rng: CPU source of the pairs and of their shares.

    Returns:
        (times * N, C, H, W).
    """
    versions = [pool, pool.flip(-1)][:times]
    sources = torch.cat(versions)
    while len(versions) < times:
        pair = torch.randint(len(sources), (2, len(pool)), generator=rng).to(pool.device)
        share = torch.rand(len(pool), 1, 1, 1, generator=rng).to(pool)
        versions.append(torch.lerp(sources[pair[0]], sources[pair[1]], share))
    return torch.cat(versions)


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
