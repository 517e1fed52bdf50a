"""Rounding with error feedback (error compensation): GPTQ, on the levels of any grid.

What a weight loses by rounding, the weights of its channel that are still to be rounded make up
for, as far as their inputs are correlated with its own (Frantar et al., ICLR 2023,
arXiv 2210.17323). The matrix H of second moments is half of what the paper calls the Hessian.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Columns after which what they owe is passed on to all others at once."""


def round_with_feedback(
    rows: Tensor,
    levels: Tensor,
    moment: Tensor,
    *,
    damping: float = 0.01,
    sweeps: int = 3,
) -> Tensor:
    """Levels W^ of small expected squared output error ``tr (W^ - W) H (W^ - W)^T``.

    GPTQ (section 4 and algorithm 1): with U the upper Cholesky factor of the inverse of the
    dampened H (step 3), column j is rounded to the nearest level and every later column k moves by
    ``-(W_j - W^_j) U_jk / U_jj``, `BLOCK` columns at a time (step 2). The order of the columns,
    which the paper leaves open (step 1), is that of falling ``H_jj``, known as act-order. After
    that come sweeps of coordinate descent (QuantEase, Behdin et al., 2023, arXiv 2309.01885): each
    weight in turn, in the same order, takes the level that is best given all others,
    ``nearest(W^_j - ((W^ - W) H)_j / H_jj)``, which can only make the error under the dampened H
    smaller.

    Args:
        rows: (groups, channels, n) W.
        levels: (groups, channels, L) ascending levels of each channel.
        moment: (groups, n, n) H, the second moment of the inputs.
        damping: Share of H's mean diagonal that is added to its diagonal, above 0.
        sweeps: Rounds of coordinate descent at most; it ends when a round changes nothing.

    Returns:
        (groups, channels, n), float64 where the device has it.

    Raises:
        ValueError: If the moments are not finite, or damping is not above 0.
    """
    if not damping > 0:
        raise ValueError(f"damping must be above 0, a share of the mean diagonal; got {damping}")
    if not bool(moment.isfinite().all()):
        raise ValueError("the second moments of the inputs are not finite; check for NaN, infinity")
    damped = _damped(moment, damping)
    order = damped.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    columns = order.unsqueeze(1).expand_as(rows)
    damped = damped.gather(1, order.unsqueeze(2).expand_as(damped))
    damped = damped.gather(2, order.unsqueeze(1).expand_as(damped))
    nearest = _Nearest(levels.to(damped))
    # Columns first: what is rounded at once lies side by side in memory.
    target = rows.to(damped).gather(2, columns).permute(2, 0, 1).contiguous()
    rounded = _descend(target, _feedback(target, nearest, damped), nearest, damped, sweeps)
    rounded = rounded.permute(1, 2, 0).contiguous()
    return torch.empty_like(rounded).scatter_(2, columns, rounded)


def output_error(rows: Tensor, levels: Tensor, moment: Tensor) -> Tensor:
    """(groups, channels) ``e H e^T`` of each channel's error e."""
    error = (levels - rows).to(moment)
    return ((error @ moment) * error).sum(2)


def _damped(moment: Tensor, damping: float) -> Tensor:
    diagonal = moment.diagonal(dim1=1, dim2=2)
    added = damping * diagonal.mean(1)
    # A group whose inputs are all zero has no preference; any positive number does.
    added = torch.where(added > 0, added, torch.ones_like(added))
    return moment + torch.diag_embed(added.unsqueeze(1).expand_as(diagonal))


class _Nearest:
    """The nearest levels of one weight of each channel at a time.

    Args:
        levels: (groups, channels, L) ascending.
    """

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels.flatten(0, 1).contiguous()
        self.middles = (self.levels[:, 1:] + self.levels[:, :-1]) / 2

    def __call__(self, column: Tensor) -> Tensor:
        """(groups, channels) contiguous; of two levels that are equally near the lower one."""
        index = torch.searchsorted(self.middles, column.view(-1, 1))
        return self.levels.gather(1, index).view_as(column)


def _feedback(target: Tensor, nearest: _Nearest, moment: Tensor) -> Tensor:
    """Steps 1 to 3 of GPTQ; (n, groups, channels), as is what it returns."""
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)))
    factor = factor.movedim(0, 2)  # its rows are the columns of U: (later, earlier, groups)
    left, rounded = target.clone(), torch.empty_like(target)
    pivots = factor.diagonal().mT.unsqueeze(2)  # (n, groups, 1)
    count = len(target)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        within = factor[start:stop, start:stop].movedim(1, 0).unsqueeze(3).contiguous()
        part, owed = left[start:stop], torch.empty_like(left[start:stop])
        for j in range(stop - start):
            rounded[start + j] = nearest(part[j])
            torch.sub(part[j], rounded[start + j], out=owed[j]).div_(pivots[start + j])
            if j + 1 < stop - start:
                part[j + 1 :].addcmul_(within[j, j + 1 :], owed[j], value=-1)
        if stop < count:
            left[stop:] -= torch.einsum("kjg,jgc->kgc", factor[stop:, start:stop], owed)
    return rounded


def _descend(
    target: Tensor, rounded: Tensor, nearest: _Nearest, moment: Tensor, sweeps: int
) -> Tensor:
    """Coordinate descent; the slope of later blocks is put right a block at a time."""
    count = len(target)
    by_column = moment.movedim(0, 2).unsqueeze(3)  # (n, n, groups, 1)
    slope = torch.einsum("gjk,jgc->kgc", moment, rounded - target)
    for _ in range(sweeps):
        changed = False
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            within = by_column[start:stop, start:stop].contiguous()
            own, before = slope[start:stop].clone(), rounded[start:stop].clone()
            steps = 1 / within.diagonal().movedim(2, 0)  # (columns, groups, 1)
            for j in range(stop - start):
                column = rounded[start + j]
                level = nearest(torch.addcmul(column, own[j], steps[j], value=-1))
                if j + 1 < stop - start:
                    own[j + 1 :].addcmul_(within[j, j + 1 :], level - column)
                column.copy_(level)
            moved = rounded[start:stop] - before
            if bool(moved.any()):
                changed = True
                slope += torch.einsum("gjk,jgc->kgc", moment[:, start:stop], moved)
        if not changed:
            break
    return rounded
