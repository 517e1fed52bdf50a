from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.reconstruction import ReconstructOptions, reconstruct
from zaq_plugin.reconstruction.blocks import find_blocks, uncovered_weights
from zaq_plugin.student import reached_layers, twin
from zaq_plugin.student.fake_quantizers import set_switches


def test_eager_blocks(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    student = make_student(tiny())
    blocks = find_blocks(student, twin(student), smooth_images(2))
    assert [b.name for b in blocks] == ["stem", "stage1", "down", "stage2", "head"]
    assert [len(b.weights) for b in blocks] == [1, 2, 1, 2, 1]


def test_eager_block_gives_what_the_model_computes_there(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    student = make_student(tiny())
    teacher = twin(student)
    x = smooth_images(4)
    head = find_blocks(student, teacher, x)[-1]
    assert torch.equal(head.student(head.student_input(x)), student(x))
    assert torch.equal(head.teacher(head.teacher_input(x)), teacher(x))


def test_chained_blocks_are_recognised() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    for layer in wide:
        if isinstance(layer, nn.Conv2d):
            fake = PWLQPerChannelFakeQuantize(UniformSpec(bits=3))
            parametrize.register_parametrization(layer, "weight", fake, unsafe=True)
    blocks = find_blocks(wide, twin(wide), torch.randn(2, 3, 4, 4))
    assert [b.name for b in blocks] == ["0", "1", "3"]
    assert [b.chained for b in blocks] == [False, True, False]


class Contained(nn.Module):
    """Layers in containers that are never called themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)])
        self.encoder = nn.Module()
        self.encoder.inner = nn.Module()
        self.encoder.inner.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x).relu()
        return self.encoder.inner.last(x)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("largest", [1, 2])
def test_containers_that_are_not_called_hide_no_layer(largest: int) -> None:
    model = Contained()
    for layer in list(model.modules()):
        if isinstance(layer, nn.Conv2d):
            fake = PWLQPerChannelFakeQuantize(UniformSpec(bits=3))
            parametrize.register_parametrization(layer, "weight", fake, unsafe=True)
    blocks = find_blocks(model, twin(model), torch.randn(2, 3, 4, 4), largest)
    assert [b.name for b in blocks] == ["parts.0", "parts.1", "encoder.inner.last"]


def test_graph_blocks_compose_to_the_model(graph_student: Callable[[], nn.Module]) -> None:
    student = graph_student()
    teacher = twin(student)
    x = torch.randn(4, 3, 8, 8)
    blocks = find_blocks(student, teacher, x)
    assert [b.weights for b in blocks] == [
        ("stem.weight_fake_quant",),
        ("conv1.weight_fake_quant", "conv2.weight_fake_quant"),
        ("last.weight_fake_quant",),
    ]
    assert [b.chained for b in blocks] == [False, True, True]
    mine, theirs = x, x
    for block in blocks:
        assert torch.equal(block.student_input(x), mine)
        mine, theirs = block.student(mine), block.teacher(theirs)
    assert torch.equal(mine, student(x))
    assert torch.equal(theirs, teacher(x))


def test_graph_blocks_hold_the_quantizer_of_their_input(
    graph_student: Callable[[], nn.Module],
) -> None:
    """An activation's quantizer is tuned with the block that it feeds."""
    student = graph_student()
    blocks = find_blocks(student, twin(student), torch.randn(2, 3, 8, 8))
    inside = [{n for n, _ in b.modules[0].named_modules()} for b in blocks]
    assert "input_fq" in inside[0]
    assert {"stem_fq", "mid_fq"} <= inside[1]
    assert "block_fq" in inside[2]


class Twice(nn.Module):
    """A layer that is called twice between two that are called once, and a part called twice."""

    def __init__(self, once: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1) if once else nn.Identity()
        self.part = nn.Sequential(nn.Conv2d(4 if once else 3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.last = nn.Conv2d(4, 2, 1) if once else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.part(x) + self.part(x.flip(-1)))


def quantized(model: nn.Module) -> nn.Module:
    for layer in list(model.modules()):
        if isinstance(layer, nn.Conv2d):
            fake = PWLQPerChannelFakeQuantize(UniformSpec(bits=3))
            parametrize.register_parametrization(layer, "weight", fake, unsafe=True)
    return model.eval()


@pytest.mark.parametrize("largest", [1, 8])
def test_what_is_called_twice_is_left_out_and_told(largest: int) -> None:
    student = quantized(Twice())
    blocks = find_blocks(student, twin(student), torch.randn(2, 3, 4, 4), largest)
    assert [b.name for b in blocks] == ["first", "last"]
    assert {n.split(".param")[0]: r for n, r in blocks.uncovered.items()} == {
        "part.0": "it is called 2 times",
        "part.2": "it is called 2 times",
    }
    assert blocks.note() == "part.0 (it is called 2 times), part.2 (it is called 2 times)"


def test_reconstruction_goes_on_with_the_rest() -> None:
    torch.manual_seed(0)
    student = quantized(Twice())
    teacher, images = twin(student), torch.randn(32, 3, 6, 6)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    right = teacher(images)
    first = float((student(images) - right).square().mean())
    options = ReconstructOptions(iterations=60, batch_size=16, drop=0.0)
    results = reconstruct(student, teacher, images, options)
    assert [r.name for r in results] == ["first", "last"]
    assert float((student(images) - right).square().mean()) < first
    for name, value in student.named_parameters():
        moved = name.endswith("original") and not name.startswith("part")
        assert torch.equal(value, before[name]) != moved, name


def test_no_block_at_all_is_an_error() -> None:
    student = quantized(Twice(once=False))
    with pytest.raises(
        ValueError,
        match=r"no block with one tensor in and one out holds part\.0 \(it is called 2 times\), "
        r"part\.2 .*; such a layer cannot be reconstructed by itself, and there is no other",
    ):
        find_blocks(student, twin(student), torch.randn(2, 3, 8, 8))
    assert uncovered_weights(student, twin(student), torch.randn(2, 3, 8, 8)) == ""


def test_tied_weights_are_in_no_block() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model[2].weight = model[0].weight
    student = quantized(model)
    blocks = find_blocks(student, twin(student), torch.randn(2, 4, 4, 4))
    assert [b.name for b in blocks] == ["3"]
    assert set(blocks.uncovered.values()) == {"its weight is shared by 2 layers"}


def test_a_weight_used_twice_inside_one_block_is_covered() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.conv(self.other(x))

    student = quantized(nn.Sequential(Inside()))
    blocks = find_blocks(student, twin(student), torch.randn(2, 3, 4, 4))
    assert [(b.name, len(b.weights)) for b in blocks] == [("0", 2)]
    assert blocks.uncovered == {}


def test_a_weight_used_in_two_stretches_of_a_graph_is_in_no_block() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(self.b(x))))

    class Whole(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(module, nn.Conv2d)

    model = quantized(Chain())
    student = fx.GraphModule(model, Whole().trace(model))
    blocks = find_blocks(student, twin(student), torch.randn(2, 3, 4, 4))
    assert [w.split(".")[0] for b in blocks for w in b.weights] == ["a", "c"]
    assert [(n.split(".")[0], r) for n, r in blocks.uncovered.items()] == [
        ("b", "it is used in 2 places")
    ]


def test_parameters_are_found_behind_a_channel_factor() -> None:
    """Hosts that fold BatchNorm on the fly hand the fake-quantizer weight times factor."""

    class Folded(nn.Conv2d):
        def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
            super().__init__(inputs, outputs, kernel)
            self.weight_fake_quant = PWLQPerChannelFakeQuantize(UniformSpec(bits=3))

        def forward(self, x: Tensor) -> Tensor:
            factor = torch.arange(1.0, 1 + self.out_channels).reshape(-1, 1, 1, 1)
            return self._conv_forward(x, self.weight_fake_quant(self.weight * factor), self.bias)

    torch.manual_seed(0)
    layer = nn.Sequential(Folded(3, 4, 3))
    (slot,) = reached_layers(layer, torch.randn(2, 3, 8, 8))
    set_switches(layer, observe=False)
    assert slot.parameter is layer[0].weight
    target = slot.quantized(slot.weight)
    slot.write(target)
    (after,) = reached_layers(layer, torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(after.quantized(after.weight), target, rtol=1e-6, atol=0)
