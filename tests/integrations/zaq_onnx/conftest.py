"""One small residual network, quantized by every host, and its exported files."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zaq_onnx
from zaq_plugin.pwlq import PWLQSpec

SPEC = PWLQSpec(bits=3)
LAYERS = ["stem.0", "body", "wide", "short", "fc"]


class Net(nn.Module):
    """Convolution with BatchNorm, a depthwise one, a sum with a shortcut, pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.short = nn.Conv2d(16, 32, 1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.wide(self.relu(self.body(x)))
        return self.fc(self.pool(self.relu(y + self.short(x))).flatten(1))


def network() -> tuple[nn.Module, Tensor]:
    """The network with BatchNorm statistics of its own, and images."""
    torch.manual_seed(0)
    model = Net().eval()
    norm = model.stem[1]
    for value, low, high in ((norm.running_mean, -0.2, 0.2), (norm.running_var, 0.5, 2.0)):
        nn.init.uniform_(value, low, high)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model, torch.randn(8, 3, 14, 14)


def simulated(activations: int = 8, spec: Any = SPEC) -> nn.Module:
    from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate

    model, images = network()
    student = simulate(fold_batch_norm(model, (images,)), spec, activations)
    calibrate(student, [images])
    return student


def fx(activations: int = 8, reference: bool = False) -> nn.Module:
    import zaq_fx

    model, images = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = zaq_fx.prepare(model, (images,), SPEC, activations)
    return zaq_fx.convert(zaq_fx.calibrate(prepared, [images]), reference=reference)


def pt2e(activations: int = 8, spec: Any = SPEC) -> nn.Module:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    import zaq_pt2e

    model, images = network()
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    quantizer = zaq_pt2e.PWLQQuantizer(spec, activations)
    prepared = prepare_pt2e(program.module(), quantizer)
    return convert_pt2e(zaq_pt2e.calibrate(prepared, [images]))


def stripped() -> nn.Module:
    import zaq_nncf

    model, images = network()
    return zaq_nncf.strip(zaq_nncf.quantize(model, [images], SPEC))


SOURCES: dict[str, Callable[[], nn.Module]] = {
    "simulated": simulated,
    "fx": fx,
    "fx-reference": lambda: fx(reference=True),
    "pt2e": pt2e,
    "pt2e-a4": lambda: pt2e(4),
    "nncf": stripped,
}
WIDE = {"pt2e-wide": lambda: pt2e(spec=replace(SPEC, overflow="allowed"))}
"""Weights with which kernels of processors without VNNI may saturate."""
RANGED = ("simulated",)
"""Exported with calibration=, as their residual sums are float."""


@dataclass(frozen=True)
class Case:
    """A quantized model and its files, whose weights no processor's kernels saturate with.

    ``whole`` has the weights as they were, which is the same but in a `wide_case`.
    """

    name: str
    model: nn.Module
    images: Tensor
    packed: Path
    plain: Path
    whole: Path
    exported: zaq_onnx.Exported


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Makes a case, once."""
    cases: dict[str, Case] = {}
    folder = tmp_path_factory.mktemp("onnx")

    def get(name: str) -> Case:
        if name not in cases:
            with torch.no_grad():
                model, images = (SOURCES | WIDE)[name](), network()[1]
                packed, plain = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
                ranges = [images] if name in RANGED else None
                exported = zaq_onnx.export(
                    model, (images,), packed, calibration=ranges, reduce_range=True
                )
                whole = folder / f"{name}.whole.onnx"
                zaq_onnx.export(model, (images,), whole, pack=False, calibration=ranges)
            zaq_onnx.unpack(packed, plain)
            cases[name] = Case(name, model, images, packed, plain, whole, exported)
        return cases[name]

    return get


OFTEN = ("simulated", "pt2e")


@pytest.fixture(
    params=[pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in SOURCES]
)
def case(request: pytest.FixtureRequest, case_of: Callable[[str], Case]) -> Case:
    """Each kind of model."""
    return case_of(request.param)


@pytest.fixture
def pt2e_case(case_of: Callable[[str], Case]) -> Case:
    """The one that most tests need."""
    return case_of("pt2e")


@pytest.fixture
def wide_case(case_of: Callable[[str], Case]) -> Case:
    """One whose weights may saturate; in its packed file they do not."""
    return case_of("pt2e-wide")


@pytest.fixture(scope="session")
def make() -> dict[str, Callable[..., Any]]:
    """The functions above, for tests that want something special."""
    return {
        "network": network,
        "simulated": simulated,
        "fx": fx,
        "pt2e": pt2e,
        "stripped": stripped,
    }
