"""What the zero-shot loader costs: a training step with it over the same step on ready images.

    python -m benchmarks.zero_shot.step --data DIR

Beside each ratio stands the one that operation counts give: a step costs three forward passes of
the student (one forward, two backward), the teacher adds one, and the generator's step, taken once
in ``student_steps`` steps, adds its own forward and backward, a forward and a backward pass to the
images through the teacher and through the student. Fresh batches add a generator's forward pass.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data.tasks import load_task
from benchmarks.rows import command_line
from benchmarks.zero_shot.run import prepare_student
from zaq_plugin.ptq import calibrate
from zaq_plugin.zero_shot import ZeroShotConfig, ZeroShotLoader
from zaq_plugin.zero_shot.generator import Generator

NEEDS = """Needs --data DIR with cifar10/ in it. Takes a minute or two."""

SHAPE = (3, 32, 32)


def flops(call: Callable[[], object]) -> float:
    """Operations of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def operations(model: nn.Module, config: ZeroShotConfig, images: Tensor) -> float:
    """The ratio of operation counts (wide layers take less time per operation than narrow)."""
    forward = flops(lambda: model(images))
    generator = Generator(SHAPE, config.latent_dim, config.generator_width)
    z = torch.randn(len(images), config.latent_dim)
    make = flops(lambda: generator(z)) if config.uses_generator else 0.0
    step = 3 * forward
    fresh = make * (1 - config.replay_share)
    adversarial = (3 * make + 4 * forward) / config.student_steps if make else 0.0
    return (step + forward + fresh + adversarial) / step


def timed(steps: int, step: Callable[[], None]) -> float:
    """Median milliseconds of a step, the first two left out."""
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def main() -> None:
    """Print one line per source of images."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = load_task("cifar10", args.data)
    job = {"bits": "4/4", "weights": "uniform", "input_bits": 8}
    ready = torch.randn(args.batch_size, *SHAPE).contiguous(memory_format=torch.channels_last)
    plain = 0.0
    for images in ("ready", "distilled", "generator", "mixed"):
        student = prepare_student(task, job, torch.device("cpu"))
        calibrate(student, [ready])
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-5)

        def learn(loss: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        if images == "ready":
            target = task.model(ready).detach()

            def ready_step(student: nn.Module = student, target: Tensor = target) -> None:
                learn((student(ready) - target).abs().mean())

            plain = timed(args.steps, ready_step)
            print(f"ready images: {plain:.0f} ms a step, batch {args.batch_size}")
            continue
        config = ZeroShotConfig(
            steps=10**6,
            batch_size=args.batch_size,
            images=images,
            loss="l1",
            feature_weight=0.0,
            distilled_images=128,
            distill_steps=1,
            warmup_steps=1,
        )
        loader = ZeroShotLoader(student, SHAPE, config, float_model=copy.deepcopy(task.model))
        batches = iter(loader)

        def step(
            student: nn.Module = student, loader: ZeroShotLoader = loader, batches: object = batches
        ) -> None:
            x, target = next(batches)  # type: ignore[call-overload]
            learn(loader.loss(student(x), target))

        # Generator steps come once in student_steps: the mean over whole rounds is what counts.
        for _ in range(config.student_steps):
            step()
        rounds = max(1, args.steps // config.student_steps)
        start = time.perf_counter()
        for _ in range(rounds * config.student_steps):
            step()
        spent = 1e3 * (time.perf_counter() - start) / (rounds * config.student_steps)
        counted = operations(task.model, config, ready)
        print(
            f"{images}: {spent:.0f} ms a step, {spent / plain:.2f} times; operations {counted:.2f}"
        )


if __name__ == "__main__":
    main()
