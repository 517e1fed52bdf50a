"""Block-by-block reconstruction: AdaRound, BRECQ, LSQ and QDrop on synthetic images.

Each block of the student is tuned, alone and in order, until it answers as the teacher's does: the
roundings of its weights (between neighbouring levels of whatever grid they have) and the steps of
its activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from zaq_plugin.reconstruction.blocks import find_blocks
from zaq_plugin.reconstruction.graph_blocks import Block
from zaq_plugin.reconstruction.learned_activations import (
    LearnedActivation,
    drop_mask,
    learned_activation,
)
from zaq_plugin.reconstruction.learned_weights import LearnedRounding
from zaq_plugin.reconstruction.options import BlockResult, ReconstructOptions
from zaq_plugin.student import QuantLayer, reached_layers
from zaq_plugin.student.fake_quantizers import Slot, activation_slots, grid_of, set_switches

_EARLY = 0.4
"""Exponent of the share of decided roundings over the iterations: most are decided early."""


class BlockWork:
    """One block: its learned stand-ins, its data, its training."""

    def __init__(
        self,
        student: nn.Module,
        block: Block,
        layers: dict[str, QuantLayer],
        options: ReconstructOptions,
        rng: torch.Generator,
        device: torch.device,
    ) -> None:
        self.block, self.options, self.rng, self.device = block, options, rng, device
        self.weights = [layers[name] for name in block.weights]
        inside = {id(m) for part in block.modules for m in part.modules()}
        self.activations: list[Slot] = [
            slot for slot in activation_slots(student) if id(slot.module) in inside
        ]
        seed = int(torch.randint(2**31, (1,), generator=rng))
        self.drops = torch.Generator(device=device).manual_seed(seed)

    def run(self, noisy: Tensor, clean: Tensor) -> tuple[BlockResult, Tensor, Tensor]:
        """Tune the block.

        Args:
            noisy: Its inputs in the student.
            clean: Its inputs in the teacher.

        Returns:
            The result, and the block's outputs in student and teacher.
        """
        block, options = self.block, self.options
        target = in_batches(block.teacher, clean)
        answer = in_batches(block.student, noisy)
        before = _mean_square(answer, target)
        first = _snapshot(self.weights, self.activations)
        with self._learning() as (roundings, steps):
            self._train(noisy, clean, target, roundings, steps)
        for layer, rounding in zip(self.weights, roundings, strict=True):
            rounding.bake(layer, options.exact)
        for place, step in zip(self.activations, steps, strict=True):
            step.bake(place)
        tuned = in_batches(block.student, noisy)
        after = _mean_square(tuned, target)
        if not after <= before:
            _put_back(first, self.weights, self.activations)
            return BlockResult(block.name, before, before, 0.0), answer, target
        changed = sum(rounding.rerounded() for rounding in roundings)
        total = sum(rounding.logits.numel() for rounding in roundings)
        result = BlockResult(block.name, before, after, changed / max(total, 1))
        return result, tuned, target

    @contextmanager
    def _learning(self) -> Iterator[tuple[list[LearnedRounding], list[LearnedActivation]]]:
        options = self.options
        roundings = [
            LearnedRounding(layer, learn_levels=options.scale_lr > 0).to(self.device)
            for layer in self.weights
        ]
        steps = [
            learned_activation(slot, options.drop, self.drops).to(self.device)
            for slot in self.activations
        ]
        places: list[tuple[Slot, nn.Module]] = [
            *zip((layer.slot for layer in self.weights), roundings, strict=True),
            *zip(self.activations, steps, strict=True),
        ]
        for slot, stand_in in places:
            slot.swap(stand_in)
            self._exchange(slot.module, stand_in)
        try:
            yield roundings, steps
        finally:
            for slot, stand_in in places:
                slot.restore()
                self._exchange(stand_in, slot.module)

    def _exchange(self, old: nn.Module, new: nn.Module) -> None:
        """A block of a graph holds modules of its own accord, not through the student."""
        for part in self.block.modules:
            for parent in part.modules():
                for name, child in parent._modules.items():
                    if child is old:
                        parent._modules[name] = new

    def _train(
        self,
        noisy: Tensor,
        clean: Tensor,
        target: Tensor,
        roundings: list[LearnedRounding],
        steps: list[LearnedActivation],
    ) -> None:
        options = self.options
        groups = [{"params": [r.logits for r in roundings], "lr": options.rounding_lr}]
        if options.scale_lr > 0:
            groups.append(
                {"params": [r.levels.edges.theta for r in roundings], "lr": options.scale_lr}
            )
        groups += [{"params": [s.learned], "lr": s.rate(options.step_lr)} for s in steps]
        optimizer = torch.optim.Adam(groups)
        scales: list[Any] = [_constant] + [self._cosine] * (len(groups) - 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scales)
        start = int(options.warmup * options.iterations)
        for step in steps:
            step.train()
        for iteration in range(options.iterations):
            chosen = torch.randint(len(target), (options.batch_size,), generator=self.rng)
            chosen = chosen.to(target.device)
            x, y = noisy[chosen], target[chosen]
            if options.drop > 0:
                x = torch.lerp(x, clean[chosen], drop_mask(x, options.drop, self.drops))
            out = self.block.student(x)
            loss = mse_loss(out, y, reduction="sum") / (y.numel() / y.shape[1])
            if iteration >= start:
                done = (iteration - start) / max(1, options.iterations - start)
                sharpness = 2 + 18 * (1 - done)
                for rounding in roundings:
                    loss = loss + options.regulariser * rounding.regulariser(sharpness)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if options.harden_until > 0 and iteration >= start:
                part = self._decided(iteration + 1 - start)
                for rounding in roundings:
                    rounding.decide(part)

    def _decided(self, iteration: int) -> float:
        """Share of the roundings that are decided so many iterations after the warm-up."""
        options = self.options
        end = max(1.0, (options.harden_until - options.warmup) * options.iterations)
        return float(min(1.0, iteration / end) ** _EARLY)

    def _cosine(self, iteration: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * iteration / self.options.iterations))


def _constant(iteration: int) -> float:
    return 1.0


@torch.no_grad()
def in_batches(call: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 64) -> Tensor:
    """What a call answers to all images, without gradients; it may write into its input."""
    return torch.cat([call(part.clone()) for part in x.split(batch_size)])


def _mean_square(answer: Tensor, target: Tensor) -> float:
    return float((answer - target).square().mean())


_State = list[tuple[Tensor, Tensor]]


def _snapshot(weights: list[QuantLayer], activations: list[Slot]) -> tuple[_State, list[Tensor]]:
    state = [
        (s.parameter.detach().clone(), s.quantizer.activation_post_process.edges.clone())
        for s in weights
    ]
    return state, [grid_of(s).detach().clone() for s in activations]


@torch.no_grad()
def _put_back(
    state: tuple[_State, list[Tensor]], weights: list[QuantLayer], activations: list[Slot]
) -> None:
    for slot, (parameter, edges) in zip(weights, state[0], strict=True):
        slot.parameter.copy_(parameter)
        slot.set_edges(edges)
    for place, grid in zip(activations, state[1], strict=True):
        grid_of(place).copy_(grid)


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
