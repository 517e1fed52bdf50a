"""Trains the shipped networks on scikit-learn's digits: python examples/train_digits.py

`residual` is the guide's network, `separable` the demo's; a minute or two on one core. The recipe
of the first was fixed beforehand. Shape and recipe of the second were chosen among some twenty by
networks trained on three quarters of the training images and measured on the fourth: deep and
narrow enough to be sensitive to rounding, trained without weight decay on BatchNorms. The held-out
third is measured at the end, and chooses no format; it was also measured once for an earlier recipe
without label smoothing, which was given up at 97.33 %. Seeds 0 and 1 (98.66 and 98.83 %) were
trained, and the default is shipped, on which uniform grids lose more. One seed gives one checkpoint
(bit for bit on one machine and one version of torch; elsewhere floating point may round
differently).
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from zaq_timm.digits import DigitsResNet, DigitsSeparableNet, load_digits_split

SHIPPED = Path(__file__).parents[1] / "integrations" / "zaq_timm" / "data"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        network: Makes an untrained one.
        file: The checkpoint's name in the package.
        epochs: Passes over the training images.
        weight_decay: Of all parameters, or of the weights alone.
        decay_norms: Whether BatchNorms and biases decay, too.
        smoothing: Of the labels.
    """

    network: Callable[[], nn.Module]
    file: str
    epochs: int
    weight_decay: float
    decay_norms: bool
    smoothing: float


RECIPES = {
    "residual": Recipe(DigitsResNet, "digits.safetensors", 60, 1e-3, True, 0.05),
    "separable": Recipe(DigitsSeparableNet, "digits-separable.safetensors", 200, 1e-4, False, 0.1),
}


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


def train(seed: int, epochs: int, batch_size: int = 64, recipe: str = "residual") -> nn.Module:
    """Trains by SGD with a one-cycle rate and jittered images.

    Args:
        seed: of weights, order and jitter.
        epochs: passes over the training images.
        batch_size: images a step.
        recipe: a key of `RECIPES`.
    """
    chosen_recipe = RECIPES[recipe]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    split = load_digits_split()
    model = chosen_recipe.network()
    criterion = nn.CrossEntropyLoss(label_smoothing=chosen_recipe.smoothing)
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        decays = chosen_recipe.decay_norms or parameter.dim() > 1
        (weights if decays else others).append(parameter)
    groups = [{"params": weights, "weight_decay": chosen_recipe.weight_decay}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
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
    parser.add_argument("--network", choices=tuple(RECIPES), default="residual")
    parser.add_argument(
        "--out", type=Path, help="where to write; the package's own file by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0, help="0 for the recipe's own")
    args = parser.parse_args()
    recipe = RECIPES[args.network]
    out = args.out or SHIPPED / recipe.file

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = train(args.seed, args.epochs or recipe.epochs, recipe=args.network)
    split = load_digits_split()
    training = accuracy(model, split.train_images, split.train_labels)
    held_out = accuracy(model, split.test_images, split.test_labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out)
    print(f"training images {training:.2f} %, held-out images {held_out:.2f} %")
    print(f"wrote {out} ({out.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
