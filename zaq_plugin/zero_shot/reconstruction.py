"""Block-by-block reconstruction: AdaRound, BRECQ, LSQ and QDrop on synthetic images.

Each block of the student is tuned, alone and in order, until it answers as the teacher's does: the
roundings of its weights (between neighbouring levels of whatever grid they have) and the steps of
its activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zaq_plugin.student import reached_layers
from zaq_plugin.student.fake_quantizers import set_switches
from zaq_plugin.zero_shot.block_work import BlockWork, in_batches
from zaq_plugin.zero_shot.blocks import find_blocks
from zaq_plugin.zero_shot.reconstruct_options import BlockResult, ReconstructOptions

Progress = Callable[[str, int, int, float], None]


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    options: ReconstructOptions | None = None,
    *,
    rng: torch.Generator | None = None,
    progress: Progress | None = None,
    refresh: Callable[[int], Tensor | None] | None = None,
) -> list[BlockResult]:
    """Reconstruct a calibrated student in place, block after block.

    Args:
        student: Prepared and calibrated; its observers are switched off.
        teacher: Its twin.
        images: (N, C, H, W) synthetic (or real) images.
        rng: CPU source of batches; drops on another device are seeded from it.
        progress: Called with (block, blocks done, blocks, error).
        refresh: Called with the number of blocks done; may return new images for the rest.

    Raises:
        ValueError: if nothing is quantized, or a layer lies in no block.
    """
    options = options or ReconstructOptions()
    rng = rng or torch.Generator().manual_seed(0)
    set_switches(student, observe=False, quantize=True)
    set_switches(teacher, observe=False, quantize=False)
    example = images[:2]
    blocks = find_blocks(student, teacher, example, options.largest_block)
    layers = {layer.slot.name: layer for layer in reached_layers(student, example)}
    results: list[BlockResult] = []
    noisy, clean = images, images
    for position, block in enumerate(blocks):
        fresh = refresh(position) if refresh is not None else None
        images = images if fresh is None else fresh
        if fresh is not None or not block.chained:
            noisy = in_batches(block.student_input, images)
            clean = in_batches(block.teacher_input, images)
        work = BlockWork(student, block, layers, options, rng, images.device)
        result, noisy, clean = work.run(noisy, clean)
        results.append(result)
        if progress is not None:
            progress(block.name, position + 1, len(blocks), results[-1].after)
    return results
