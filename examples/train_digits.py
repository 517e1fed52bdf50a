"""Trains the demo's network on scikit-learn's handwritten digits: python examples/train_digits.py

A minute on one core. The recipe was fixed beforehand; the held-out third is measured once, at the
end, and nothing is chosen by it. One seed gives one checkpoint (bit for bit on one machine and one
version of torch; elsewhere floating point may round differently).
"""

import argparse
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from zaq_timm.digits import DigitsResNet, load_digits_split

SHIPPED = Path(__file__).parents[1] / "integrations" / "zaq_timm" / "data" / "digits.safetensors"


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turns, scales and shifts every image a little, as another hand would have written it.

    Args:
        images: `(batch, 1, H, W)`.
        generator: where the random numbers come from.

    Returns:
        As many images: rotated by up to 12 degrees, scaled by up to 10 % and shifted by up
        to 0.8 pixel.
    """
    n, size = len(images), images.shape[-1]
    uniform = torch.rand(n, 5, generator=generator) * 2 - 1
    angle = uniform[:, 0] * math.radians(12)
    scale_x, scale_y = 1 + 0.1 * uniform[:, 1], 1 + 0.1 * uniform[:, 2]
    shift = uniform[:, 3:] * 0.8 * 2 / size
    theta = torch.stack(
        [
            torch.stack([scale_x * angle.cos(), -scale_y * angle.sin(), shift[:, 0]], 1),
            torch.stack([scale_x * angle.sin(), scale_y * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    # The paper is the darkest value, not zero: sample the ink above it.
    paper = images.amin()
    return functional.grid_sample(images - paper, grid, align_corners=False) + paper


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the share of images, in per cent, whose top class is the label."""
    return 100.0 * (model.eval()(images).argmax(1) == labels).float().mean().item()


def train(seed: int, epochs: int, batch_size: int = 64) -> DigitsResNet:
    """Trains by SGD with a one-cycle rate, label smoothing and jittered images."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    split = load_digits_split()
    model = DigitsResNet()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    steps = len(split.train_labels) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=epochs * steps, pct_start=0.15
    )
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(split.train_labels), generator=generator)
        total = 0.0
        for chosen in order[: steps * batch_size].split(batch_size):
            logits = model(jitter(split.train_images[chosen], generator))
            loss = criterion(logits, split.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}/{epochs}: training loss {total / steps:.4f}", flush=True)
    return model


def main() -> None:
    """Trains, measures once on the held-out third, and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where to write the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = train(args.seed, args.epochs)
    split = load_digits_split()
    training = accuracy(model, split.train_images, split.train_labels)
    held_out = accuracy(model, split.test_images, split.test_labels)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, args.out)
    print(f"training images {training:.2f} %, held-out images {held_out:.2f} %")
    print(f"wrote {args.out} ({args.out.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
