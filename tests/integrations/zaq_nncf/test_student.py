"""What zero-shot fine-tuning sees of NNCF's students; whole runs are in test_zero_shot_hosts."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import zaq_nncf
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_plugin import PWLQSpec, ZeroShotConfig, ZeroShotLoader
from zaq_plugin.student import reached_layers
from zaq_plugin.student.fake_quantizers import activation_slots
from zaq_plugin.zero_shot.blocks import find_blocks
from zaq_plugin.zero_shot.taps import find_taps

FAST = PWLQSpec(bits=3, policy="gaussian")


@pytest.fixture
def student(net: nn.Module, images: Tensor) -> nn.Module:
    return zaq_nncf.quantize(net, [images], FAST, activations=4)


def test_every_weight_leads_to_its_parameter(student: nn.Module, images: Tensor) -> None:
    found = {id(slot.parameter) for slot in reached_layers(student, images)}
    names = {n for n, p in student.named_parameters() if id(p) in found}
    layers = ("stem.0", "block.conv1", "block.conv2", "block.short.0", "fc")
    assert names == {f"{layer}.weight" for layer in layers}
    activations = [m for m in student.modules() if isinstance(m, ActivationQuantizer)]
    assert len(activation_slots(student)) == len(activations) > 5


def test_the_teacher_is_the_float_model_and_shares_its_taps(
    net: nn.Module, student: nn.Module, images: Tensor
) -> None:
    teacher = zaq_nncf.twin(student)
    assert torch.allclose(teacher(images), net(images), atol=1e-5)
    assert find_taps(teacher, images) == find_taps(student, images) == ["stem", "block"]
    assert find_taps(student, images, "block.conv*") == ["block.conv1", "block.conv2"]


def keep(seen: list[Tensor], module: nn.Module, args: object, output: Tensor) -> None:
    seen.append(output)


def test_blocks_run_with_their_quantizers(student: nn.Module, images: Tensor) -> None:
    teacher = zaq_nncf.twin(student)
    blocks = find_blocks(student, teacher, images)
    assert [block.name for block in blocks] == ["stem", "block", "fc"]
    inside = [sum(isinstance(m, ActivationQuantizer) for m in b.modules) for b in blocks]
    assert inside == [1, 4, 0]
    for block in blocks:
        for name, model, part, given in (
            ("student", student, block.student, block.student_input),
            ("teacher", teacher, block.teacher, block.teacher_input),
        ):
            module = model.get_submodule(block.name)
            seen: list[Tensor] = []
            handle = module.register_forward_hook(partial(keep, seen))
            model(images)
            handle.remove()
            assert torch.equal(part(given(images)), seen[0]), (name, block.name)


def test_the_loader_in_a_plain_loop(net: nn.Module, student: nn.Module, images: Tensor) -> None:
    config = ZeroShotConfig(steps=8, batch_size=8, distilled_images=32, distill_steps=4)
    loader = ZeroShotLoader(student, (3, 12, 12), config, float_model=net)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-3)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    for batch, targets in loader:
        loss = loader.loss(student(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    moved = [n for n, p in student.named_parameters() if not torch.equal(p, before[n])]
    assert len([n for n in moved if n.endswith("weight")]) == 5
    loader.close()


def test_what_has_no_twin(net: nn.Module, student: nn.Module) -> None:
    with pytest.raises(ValueError, match="before it is stripped"):
        zaq_nncf.twin(zaq_nncf.strip(student))
    with pytest.raises(ValueError, match="carries no hooks of NNCF"):
        zaq_nncf.twin(net)
