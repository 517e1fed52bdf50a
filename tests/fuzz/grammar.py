"""From an integer to a network: the recipe, the module, its inputs, and a description."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz import branches, convolutions, norms, sequences, shapes
from tests.fuzz.base import IMAGE, KINDS, VECTOR, Block, Shape, UnfitError
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec

CATALOGUES = (branches, convolutions, norms, sequences, shapes)
ENTRIES = ("plain",) * 6 + ("normalised", "in_place", "two_inputs", "two_added", "channels_last")
EXITS = ("plain",) * 5 + ("tuple", "dictionary", "single", "nested")
SPECS: dict[str, QuantSpec] = {"uniform7": UniformSpec(7, "symmetric"), "pwlq4": PWLQSpec(4)}
BATCH, BATCHES = 4, 3
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear, nn.Bilinear)


@dataclass(frozen=True)
class Recipe:
    """What a network is made of.

    Attributes:
        seed: Of the inputs.
        shape: Of the input, without the batch.
        entry, exit: What happens to the input and to the output, see `ENTRIES` and `EXITS`.
        steps: Kinds of blocks, each with a seed of its own, so that a block stays what it is when
            others are dropped.
        spec: The weights' format, see `SPECS`.
    """

    seed: int
    shape: Shape
    entry: str
    exit: str
    steps: tuple[tuple[str, int], ...]
    spec: str

    def __str__(self) -> str:
        kinds = " > ".join(kind for kind, _ in self.steps)
        return f"{self.shape} {self.entry} | {kinds} | {self.exit}, {self.spec}"


class Network(nn.Module):
    """One input; blocks in a row; one or several outputs."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.entry, self.exit = recipe.entry, recipe.exit
        self.steps = nn.ModuleList()
        self.head: nn.Module = nn.Identity()
        self.second: nn.Module = nn.Identity()
        self.axis = 1 if len(recipe.shape) == IMAGE else -1  # of the channels

    def forward(self, x: Tensor) -> Any:
        """The outputs, as the exit says."""
        if self.entry == "normalised":
            x = (x - 1.0) / 2.0
        elif self.entry == "in_place":
            x -= 1.0
            x /= 2.0
        return self._run(x)

    def _run(self, x: Tensor) -> Any:
        for step in self.steps:
            before, x = x, step(x)
        if self.exit == "plain":
            return x
        if self.exit == "single":
            return self.head(x)
        last = self.head(x)
        if self.exit == "dictionary":
            return {"features": x, "head": last}
        return (x, last) if self.exit == "tuple" else {"all": [x, last], "before": before}


class PairNetwork(Network):
    """Two inputs of the same shape, concatenated or added after a layer of the second's own."""

    def forward(self, x: Tensor, second: Tensor) -> Any:
        """The outputs, as the exit says."""
        if self.entry == "two_inputs":
            return self._run(torch.cat([x, second], self.axis))
        return self._run(x + self.second(second))


def recipe_of(seed: int) -> Recipe:
    """The recipe that belongs to an integer."""
    r = random.Random(seed)
    kinds = list(KINDS.values())
    start = r.random()
    shape: Shape = (3, r.randrange(8, 13), r.randrange(8, 13))
    if start < 0.06:
        shape = (12,)
    elif start < 0.12:
        shape = (9, 12)
    rank, count, steps = len(shape), r.randrange(3, 9), list[tuple[str, int]]()
    while len(steps) < count:
        fitting = [kind for kind in kinds if kind.rank == rank]
        kind = r.choice(fitting)
        leaves = kind.name in LEAVING
        if leaves and len(steps) < count // 2 and r.random() < 0.8:
            continue
        steps.append((kind.name, r.randrange(10**6)))
        rank = LEAVING.get(kind.name, rank)
    entry, exit_ = r.choice(ENTRIES), r.choice(EXITS)
    if len(shape) != IMAGE and entry == "channels_last":
        entry = "plain"
    return Recipe(seed, shape, entry, exit_, tuple(steps), r.choice(tuple(SPECS)))


LEAVING = {
    **dict.fromkeys(("to_tokens", "patches", "flatten_rows"), 2),
    **dict.fromkeys(("flatten", "global_pool", "global_mean", "global_max"), VECTOR),
    **dict.fromkeys(("pool_tokens", "flatten_tokens"), VECTOR),
    "to_image": IMAGE,
}


def build(recipe: Recipe) -> tuple[Network, Recipe]:
    """The network, in evaluation mode, and the recipe without the blocks that did not fit.

    Raises:
        UnfitError: no block fits, or no layer is left.
    """
    pair = recipe.entry in ("two_inputs", "two_added")
    network = (PairNetwork if pair else Network)(recipe)
    x = torch.ones(2, *recipe.shape)
    if recipe.entry == "two_inputs":
        x = torch.cat([x, x], 1 if x.dim() == 4 else -1)
    torch.manual_seed(recipe.seed)
    if recipe.entry == "two_added":
        c = recipe.shape[0] if x.dim() == 4 else recipe.shape[-1]
        network.second = nn.Conv2d(c, c, 1) if x.dim() == 4 else nn.Linear(c, c)
    used = []
    for kind, salt in recipe.steps:
        block = _block(kind, salt, tuple(x.shape[1:]))
        if block is None:
            continue
        with torch.no_grad():
            x = block.eval()(x)
        network.steps.append(block)
        used.append((kind, salt))
    if recipe.exit not in ("plain",):
        torch.manual_seed(recipe.seed + 1)
        outputs = 1 if recipe.exit == "single" else 4
        c = x.shape[1] if x.dim() == 4 else x.shape[-1]
        network.head = nn.Conv2d(c, outputs, 1) if x.dim() == 4 else nn.Linear(c, outputs)
    if not used or not any(isinstance(m, LAYERS) for m in network.modules()):
        raise UnfitError
    if recipe.entry == "channels_last" and all(p.dim() < 5 for p in network.parameters()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval(), replace(recipe, steps=tuple(used))


def _block(kind: str, salt: int, shape: Shape) -> nn.Module | None:
    """One block with weights and statistics of its own, or None where it does not fit."""
    if KINDS[kind].rank != len(shape):
        return None
    torch.manual_seed(salt)
    r = random.Random(salt)
    try:
        block = KINDS[kind].make(r, shape)
    except UnfitError:
        return None
    spread = r.random() < 0.3
    for module in block.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            _give_statistics(module)
        elif spread and isinstance(module, nn.Conv2d) and module.weight.is_leaf:
            # Channels of different size, as in trained networks
            size = torch.exp(torch.randn(module.weight.shape[0], 1, 1, 1) * 0.7)
            module.weight.data.mul_(size)
    if isinstance(block, Block) and hasattr(block, "zero_scales"):
        block.bn.weight.data[: block.zero_scales] = 0  # type: ignore[operator, union-attr]
    return block


def _give_statistics(norm: nn.modules.batchnorm._NormBase) -> None:
    if norm.running_mean is not None:
        nn.init.normal_(norm.running_mean, std=0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    if norm.weight is not None:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)


def inputs_of(recipe: Recipe) -> list[tuple[Tensor, ...]]:
    """Batches of inputs: normal, of mean one where the network normalises them."""
    generator = torch.Generator().manual_seed(recipe.seed)
    count = 2 if recipe.entry in ("two_inputs", "two_added") else 1
    shifted = recipe.entry in ("normalised", "in_place")
    batches = []
    for _ in range(BATCHES):
        inputs = [torch.randn(BATCH, *recipe.shape, generator=generator) for _ in range(count)]
        if shifted:
            inputs = [x * 2 + 1 for x in inputs]
        if recipe.entry == "channels_last":
            inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
        batches.append(tuple(inputs))
    return batches
