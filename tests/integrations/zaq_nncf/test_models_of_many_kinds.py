"""ModuleLists, shared and computed weights, small samples, several inputs: against the float."""

from collections.abc import Callable
from typing import Any

import nncf
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zaq_nncf
from zaq_plugin.pwlq import UniformSpec, sqnr_db

SPEC = UniformSpec(7, "symmetric")


class Steps(nn.Module):
    """Norms in ModuleLists, one of the same name outside."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            [nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), nn.LayerNorm(8), nn.Linear(8, 8)]
        )
        self.norm = nn.LayerNorm(8)
        for scale, norm in enumerate([self.steps[0][1], self.steps[1], self.norm], 1):
            nn.init.uniform_(norm.weight, 0.5 * scale, 1.5 * scale)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.norm(x)


class Tied(nn.Module):
    """A weight that is multiplied as it is, and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.a(x)), self.a.weight.t())


class Mirrored(nn.Module):
    """One weight, whose channels are another axis in either layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Computed(nn.Module):
    """Weights that are computed from parameters at every call, and one of a layer never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 4)
        self.w = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(F.linear(F.linear(x, self.a.weight * 2), self.w + 1)))


class Embedded(nn.Module):
    """The head has the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.h.weight = self.e.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.e(x))


class Pair(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y)


class Normalising(nn.Module):
    """It changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.sub_(0.5).div_(0.25))


def rows() -> list[Tensor]:
    return list(torch.randn(32, 8).split(8))


def quantized(model: nn.Module, batches: Any, **options: Any) -> nn.Module:
    return zaq_nncf.quantize(model, batches, SPEC, **options)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Tensor]]]] = {
    "steps": (Steps, rows),
    "tied": (Tied, rows),
    "mirrored": (Mirrored, lambda: list(torch.rand(8, 3, 8, 8).split(4))),
    "computed": (Computed, rows),
    "embedded": (Embedded, lambda: list(torch.randint(0, 20, (16, 5)).split(4))),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)),
        rows,
    ),
    "one sample": (lambda: nn.Linear(8, 6), lambda: list(torch.randn(16, 8))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_near_the_float_model_and_the_same_once_stripped(kind: str) -> None:
    torch.manual_seed(0)
    model, batches = KINDS[kind][0]().eval(), KINDS[kind][1]()
    student = quantized(model, batches)
    stripped = zaq_nncf.strip(student)
    with torch.no_grad():
        for x in batches[:4]:
            assert sqnr_db(model(x), student(x)) > 25
            assert sqnr_db(student(x), stripped(x)) > 60


def test_positive_weights_on_small_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    for parameter in model.parameters():
        parameter.data.abs_()
    x = torch.randn(64, 8)
    with torch.no_grad():
        assert sqnr_db(model(x), quantized(model, list(x.split(8)))(x)) > 25


def test_norms_in_lists_are_told_apart() -> None:
    torch.manual_seed(0)
    kinds = {r.name: r.kind for r in zaq_nncf.audit(quantized(Steps().eval(), rows())).quantized}
    norms = {name for name, kind in kinds.items() if kind == "LayerNorm"}
    assert norms == {"steps.0.1", "steps.1", "norm"}


def test_what_is_computed_is_not_called_unused() -> None:
    torch.manual_seed(0)
    records = zaq_nncf.audit(quantized(Computed().eval(), rows()))
    assert {r.name for r in records.skipped} == {"a", "w"}
    assert "computed from it at every call (mul)" in records["a"].reason
    assert "computed from it at every call (add)" in records["w"].reason


@pytest.mark.parametrize("kind", ["tuples", "mappings", "traced"])
def test_several_inputs(kind: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = Pair().eval()
    pairs = list(zip(rows(), rows(), strict=True))
    batches = [{"x": x, "y": y} for x, y in pairs] if kind == "mappings" else pairs
    root = torch.fx.symbolic_trace(model) if kind == "traced" else model
    student = quantized(root, batches)
    stripped = zaq_nncf.strip(student)
    with torch.no_grad():
        for x, y in pairs:
            assert sqnr_db(model(x, y), student(x, y)) > 25
            assert sqnr_db(student(x, y), stripped(x, y)) > 60


@pytest.mark.parametrize("wrap", [list, nncf.Dataset])
def test_inputs_are_not_touched(wrap: Any) -> None:
    torch.manual_seed(0)
    model, batches = Normalising().eval(), list(torch.rand(32, 8).split(8))
    before = [x.clone() for x in batches]
    student = quantized(model, wrap(batches))
    assert all(map(torch.equal, batches, before))
    with torch.no_grad():
        assert sqnr_db(model(before[0].clone()), student(before[0].clone())) > 25
