"""Exported graphs get their layers back, with the same function and the same parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, correct_bias, restore_layers, simulate
from zaq_plugin.pwlq import PWLQSpec

LAYERS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("conv1d", lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9)),
    ("conv2d", lambda: nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), (2, 1), groups=2), (2, 4, 9, 9)),
    ("conv2d-same", lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 9, 9)),
    ("conv3d", lambda: nn.Conv3d(4, 6, 2), (2, 4, 5, 5, 5)),
    ("transposed1d", lambda: nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
    (
        "transposed2d",
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, bias=False, dilation=2),
        (2, 4, 5, 5),
    ),
    ("linear", lambda: nn.Linear(4, 6), (3, 5, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), [x[1:] for x in LAYERS], ids=[x[0] for x in LAYERS])
def test_every_layer(layer: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    original, x = nn.Sequential(layer(), nn.ReLU()).eval(), torch.randn(shape)
    exported = torch.export.export(original, (x,)).module()
    restored = restore_layers(exported)
    modules = [m for m in restored.modules() if type(m) is type(original[0])]
    assert len(modules) == 1
    assert torch.equal(modules[0].weight, original[0].weight)
    assert torch.equal(restored(x), original(x))
    assert set(restored.state_dict()) == set(original.state_dict())
    assert not any(type(m) is type(original[0]) for m in exported.modules())


class Shared(nn.Module):
    """A layer called twice, a tied weight, a free parameter, and a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.kernel = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.first(x).relu()) + self.second(x)
        x = nn.functional.linear(x, self.kernel)
        return nn.functional.linear(x, self.kernel * 2)


def test_shared_free_and_computed_weights() -> None:
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(3, 4)
    restored = restore_layers(torch.export.export(model, (x,)).module())
    assert torch.allclose(restored(x), model(x), rtol=1e-6)
    linears = {n: m for n, m in restored.named_modules() if isinstance(m, nn.Linear)}
    assert set(linears) == {"first", "second", "kernel_layer"}
    assert linears["first"].weight is linears["second"].weight
    assert torch.equal(linears["first"].bias, model.first.bias)
    calls = [n.target for n in restored.graph.nodes if n.op == "call_module"]
    assert calls.count("first") == 2
    left = [
        n for n in restored.graph.nodes if "linear" in str(n.target) and n.op == "call_function"
    ]
    assert len(left) == 1


def test_a_restored_graph_can_be_simulated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    images = [torch.rand(4, 3, 8, 8)]
    batch = {"input": {0: torch.export.Dim("n", min=1, max=64)}}
    exported = torch.export.export(model, (images[0],), dynamic_shapes=batch).module()
    student = simulate(restore_layers(exported), PWLQSpec(bits=3), 8)
    eager = simulate(model, PWLQSpec(bits=3), 8)
    for each in (student, eager):
        calibrate(each, images)
        correct_bias(each, images)
    assert [r.name for r in student.zaq_audit.quantized] == ["0", "3"]
    with torch.no_grad():
        assert torch.allclose(student(images[0]), eager(images[0]), rtol=1e-5, atol=1e-6)


def test_errors() -> None:
    model = nn.Sequential(nn.ReLU())
    program = torch.export.export(model, (torch.randn(2),))
    with pytest.raises(TypeError, match=r"got ExportedProgram; pass program\.module\(\)"):
        restore_layers(program)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no convolution or linear operator whose weight"):
        restore_layers(program.module())
