"""What zero-shot fine-tuning sees of NNCF's students; whole runs are in test_zero_shot_hosts."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import zaq_nncf
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_plugin import PWLQSpec, ZeroShotConfig, ZeroShotLoader
from zaq_plugin.reconstruction.blocks import find_blocks
from zaq_plugin.student import reached_layers, student_of
from zaq_plugin.student.fake_quantizers import activation_slots
from zaq_plugin.zero_shot.taps import find_taps

FAST = PWLQSpec(bits=3, policy="gaussian")


@pytest.fixture
def student(net: nn.Module, images: Tensor) -> nn.Module:
    return zaq_nncf.quantize(net, [images], FAST, activations=4)


def test_every_weight_leads_to_its_parameter(student: nn.Module, images: Tensor) -> None:
    ids = {id(slot.parameter) for slot in reached_layers(student, images)}
    names = {n for n, p in student.named_parameters() if id(p) in ids}
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
        for name, model, part, feed in (
            ("student", student, block.student, block.student_input),
            ("teacher", teacher, block.teacher, block.teacher_input),
        ):
            module = model.get_submodule(block.name)
            seen: list[Tensor] = []
            handle = module.register_forward_hook(partial(keep, seen))
            model(images)
            handle.remove()
            assert torch.equal(part(feed(images)), seen[0]), (name, block.name)


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


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).relu())


class Listed(nn.Module):
    """Blocks in lists and dictionaries, in a module that is never called, and in a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.named = nn.ModuleDict({"inner": nn.ModuleList([Block()])})
        self.plain, self.sequence = nn.Module(), nn.Sequential(Block())
        self.plain.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.plain.block(self.named["inner"][0](x))
        return self.head(self.sequence(x))


PLACES = ("blocks.0", "blocks.1", "named.inner.0", "plain.block", "sequence", "sequence.0")


def listed() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, images = Listed().eval(), torch.randn(8, 3, 9, 9)
    return model, zaq_nncf.quantize(model, [images], FAST, activations=4), images


def test_parts_in_lists_run_with_their_own_quantizers() -> None:
    _, student, images = listed()
    view, before = student_of(student), copy.deepcopy(student)
    quantizers: list[nn.Module] = []
    for name in (*PLACES, "blocks.1.a", "stem"):
        seen: dict[str, Tensor] = {}

        def look(
            _: nn.Module, args: tuple[Tensor], out: Tensor, seen: dict[str, Tensor] = seen
        ) -> None:
            seen.update(x=args[0], y=out)

        handle = student.get_submodule(name).register_forward_hook(look)
        student(images)
        handle.remove()
        assert torch.equal(view.part(student, name, seen["x"]), seen["y"]), name
        assert torch.equal(view.part(before, name, seen["x"]), seen["y"]), name
        if name in PLACES[:5]:
            quantizers += view.quantizers_inside(name)
    assert [len(view.quantizers_inside(name)) for name in PLACES] == [4] * 6  # two
    # weights, what is between them, and the block's input as its first layer multiplies it
    assert len(set(map(id, quantizers))) == 20  # none of them in two parts


def test_blocks_in_lists_are_reconstructed() -> None:
    """Their inputs are on grids, which a reconstruction without them would not know."""
    _, student, images = listed()
    names = [block.name for block in find_blocks(student, zaq_nncf.twin(student), images)]
    assert {"blocks.0", "blocks.1"} < set(names)
    student.__dict__.pop("zaq_parts")
    with pytest.raises(ValueError, match="NNCF does not tell the items of the list 'blocks' apart"):
        student_of(student).part(student, "blocks.1", torch.randn(2, 8, 7, 7))


def test_an_input_that_is_written_in_place_is_told() -> None:
    class InPlace(nn.Module):
        def __init__(self, used: bool) -> None:
            super().__init__()
            self.conv, self.used = nn.Conv2d(3, 8, 3), used

        def forward(self, x: Tensor) -> Tensor:
            y = x.sub_(1.0).div_(2.0)
            return self.conv(y if self.used else x)

    images = torch.randn(8, 3, 9, 9)
    for used in (True, False):
        quantized = zaq_nncf.quantize(InPlace(used).eval(), [images], FAST)
        record = zaq_nncf.audit(quantized)["conv"]
        assert (record.activation is not None) is used
        assert ("NNCF quantizes what 'div_' returns" in (record.reason or "")) is not used
        assert zaq_nncf.audit(zaq_nncf.strip(quantized))["conv"].reason == record.reason
