"""Random drops (QDrop): which values of an activation stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_mask(like: Tensor, share: float, rng: torch.Generator | None) -> Tensor:
    """Each element True with probability ``share``, in steps of 1/256; same shape, bool.

    Four elements share one random integer: drawing is a fifth of a reconstruction step otherwise.
    """
    count = like.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int32, device=like.device)
    words.random_(-(2**31), 2**31, generator=rng)
    return (words.view(torch.uint8)[:count] < round(256 * share)).view(like.shape)
