"""Rounding with error feedback (error compensation): GPTQ, on the levels of any grid.

What a weight loses by rounding, the weights of its channel that are still to be rounded make up
for, as far as their inputs are correlated with its own (Frantar et al., ICLR 2023,
arXiv 2210.17323). The matrix H of second moments is half of what the paper calls the Hessian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zaq_plugin.pwlq.cells import nearest_level

BLOCK = 128
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
    weight in turn takes the level that is best given all others,
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
    sorted_h = damped.gather(1, order.unsqueeze(2).expand_as(damped))
    sorted_h = sorted_h.gather(2, order.unsqueeze(1).expand_as(damped))
    made = _feedback(rows.to(damped).gather(2, columns), levels.to(damped), sorted_h)
    made = torch.empty_like(made).scatter_(2, columns, made)
    return _descend(rows.to(damped), made, levels.to(damped), damped, sweeps)


def output_error(rows: Tensor, made: Tensor, moment: Tensor) -> Tensor:
    """(groups, channels) ``e H e^T`` of each channel's error e."""
    error = (made - rows).to(moment)
    return ((error @ moment) * error).sum(2)


def _damped(moment: Tensor, damping: float) -> Tensor:
    diagonal = moment.diagonal(dim1=1, dim2=2)
    added = damping * diagonal.mean(1)
    # A group whose inputs are all zero has no preference; any positive number does.
    added = torch.where(added > 0, added, torch.ones_like(added))
    return moment + torch.diag_embed(added.unsqueeze(1).expand_as(diagonal))


def _feedback(rows: Tensor, levels: Tensor, moment: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment))).mT
    left, made = rows.clone(), torch.empty_like(rows)
    count = rows.shape[2]
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        owed = torch.empty_like(left[:, :, start:stop])
        for j in range(start, stop):
            made[:, :, j] = _nearest(left[:, :, j], levels)
            pivot = factor[:, j, j].unsqueeze(1)
            owed[:, :, j - start] = (left[:, :, j] - made[:, :, j]) / pivot
            later = factor[:, j, j + 1 : stop].unsqueeze(1)
            left[:, :, j + 1 : stop] -= owed[:, :, j - start].unsqueeze(2) * later
        left[:, :, stop:] -= owed @ factor[:, start:stop, stop:]
    return made


def _descend(rows: Tensor, made: Tensor, levels: Tensor, moment: Tensor, sweeps: int) -> Tensor:
    for _ in range(sweeps):
        slope, changed = (made - rows) @ moment, False
        for j in range(rows.shape[2]):
            best = made[:, :, j] - slope[:, :, j] / moment[:, j, j].unsqueeze(1)
            moved = _nearest(best, levels) - made[:, :, j]
            if bool(moved.any()):
                changed = True
                slope += moved.unsqueeze(2) * moment[:, j].unsqueeze(1)
                made[:, :, j] += moved
        if not changed:
            break
    return made


def _nearest(column: Tensor, levels: Tensor) -> Tensor:
    """The levels nearest to one weight of each channel, (groups, channels)."""
    flat = nearest_level(column.reshape(-1, 1), levels.flatten(0, 1))
    return flat.reshape(column.shape)
