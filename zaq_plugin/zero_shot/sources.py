"""Where a training batch comes from: the distilled pool, the generator, earlier batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zaq_plugin.zero_shot.adversary import Adversary
from zaq_plugin.zero_shot.config import ZeroShotConfig


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
