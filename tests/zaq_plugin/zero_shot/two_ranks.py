"""What each of two ranks runs: a student, the loader, a plain loop under DDP."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate
from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.zero_shot import ZeroShotConfig, ZeroShotLoader

CONFIG = ZeroShotConfig(
    steps=6,
    batch_size=4,
    images="mixed",
    distilled_images=16,
    distill_steps=2,
    latent_dim=8,
    generator_width=4,
    warmup_steps=2,
    student_steps=2,
    alpha=0.1,
)


def make_student() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 6, 1), (6, 12, 2)):
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    images = torch.randn(32, 3, 8, 8)
    model(images)
    student = simulate(fold_batch_norm(model.eval()), UniformSpec(bits=3), 4)
    calibrate(student, images.split(16))
    return student


def work(folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    student = make_student()
    try:
        wrapped = nn.parallel.DistributedDataParallel(student)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-2)
        loader = ZeroShotLoader(wrapped, (3, 8, 8), CONFIG)
        seen = []
        for images, targets in loader:
            seen.append(images)
            loss = loader.loss(wrapped(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loader.adversary is not None
        torch.save(
            {
                "student": student.state_dict(),
                "generator": [p.detach() for p in loader.adversary.generator.parameters()],
                "images": torch.stack(seen),
            },
            Path(folder) / f"{rank}.pt",
        )
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work(sys.argv[1])
