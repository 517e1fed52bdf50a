"""The quantized model in a training loop of the user's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zaq_nncf
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer
from zaq_plugin import PWLQSpec

FAST = PWLQSpec(bits=4, policy="gaussian")
Hooks = Callable[[nn.Module], dict[str, nn.Module]]


def train(model: nn.Module, images: Tensor, steps: int = 40) -> tuple[float, float]:
    labels = torch.arange(len(images)) % 6
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@pytest.mark.slow
@pytest.mark.parametrize("activations", [8, 4])
def test_it_learns_and_stays_on_its_levels(
    net: nn.Module, images: Tensor, hooks: Hooks, activations: int
) -> None:
    student = zaq_nncf.quantize(net, [images], FAST, activations=activations)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    first, last = train(student.train(), images)
    assert last < 0.8 * first
    student.eval()
    moved = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in moved if n.endswith("weight")} == {
        f"{name}.weight" for name in ("stem.0", "block.conv1", "block.conv2", "block.short.0", "fc")
    }
    assert not any("__nncf_hooks" in name for name in moved)  # ranges stay as they were calibrated
    for module in hooks(student).values():
        if isinstance(module, PWLQWeightQuantizer):
            value = module(student.get_parameter(module.weight)).detach()
            levels = max(len(row.unique()) for row in value.flatten(1))
            assert 2 < levels <= FAST.num_levels
    assert torch.equal(zaq_nncf.strip(student)(images), student(images))


def test_steps_of_activations_train_if_asked_to(
    net: nn.Module, images: Tensor, hooks: Hooks
) -> None:
    student = zaq_nncf.quantize(net, [images], FAST, activations=4, learnable=True)
    grids = {n: m.grid for n, m in hooks(student).items() if isinstance(m, ActivationQuantizer)}
    before = {name: grid.scale.detach().clone() for name, grid in grids.items()}
    train(student.train(), images, 3)
    assert all(not torch.equal(grids[name].scale, value) for name, value in before.items())
    assert torch.equal(zaq_nncf.strip(student.eval())(images), student(images))


def test_gradients_pass_straight_through(quantized: nn.Module, images: Tensor) -> None:
    """Inside the clip the gradient is that of the quantized weight itself."""
    stripped = zaq_nncf.strip(quantized)
    quantized(images).square().sum().backward()
    weight = quantized.fc.weight
    with torch.no_grad():
        baked = stripped.fc.weight
    baked.requires_grad_(True)
    stripped(images).square().sum().backward()
    quantizer = next(
        m
        for m in quantized.modules()
        if isinstance(m, PWLQWeightQuantizer) and m.weight == "fc.weight"
    )
    edges = quantizer.grid.edges[..., quantizer.spec.breakpoints]
    inside = (weight.detach() <= edges[0, :, None]) & (weight.detach() >= -edges[-1, :, None])
    assert float(inside.float().mean()) > 0.5
    assert torch.allclose(weight.grad[inside], baked.grad[inside], rtol=1e-5, atol=1e-7)
