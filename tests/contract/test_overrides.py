"""One table of overrides means the same in every host."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

import zaq_fx
import zaq_nncf
import zaq_pt2e
from zaq_plugin.ptq import simulate
from zaq_plugin.pwlq import PWLQSpec, UniformSpec
from zaq_plugin.report import Audit

DEFAULT = PWLQSpec(bits=4, policy="gaussian")
THREE, FIVE, SIX = (PWLQSpec(bits=bits, policy="gaussian") for bits in (3, 5, 6))
SEVEN, EIGHT = UniformSpec(bits=7), UniformSpec(bits=8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))))


class Wide(Block):
    """A block that is derived from another."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = Block()
        self.second = Block()
        self.third = Wide()
        self.tail = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tail(self.third(self.second(self.first(self.stem(x)))))
        return self.head(torch.relu(self.fc(torch.relu(x).mean((2, 3)))))


TABLE: dict[Any, Any] = {
    "*": DEFAULT,  # less specific than all other names, and more than any class
    "stem": FIVE,
    "first": SIX,
    "first.*2": THREE,
    "second.conv1": None,
    "second": EIGHT,
    "head": None,
}
EXPECTED = {
    "stem": FIVE,
    "first.conv1": SIX,
    "first.conv2": THREE,
    "second.conv1": None,
    "second.conv2": EIGHT,
    "third.conv1": DEFAULT,
    "third.conv2": DEFAULT,
    "tail": DEFAULT,
    "fc": DEFAULT,
    "head": None,
}

BY_CLASS: dict[Any, Any] = {
    Block: SIX,
    Wide: THREE,
    nn.Linear: EIGHT,
    "fc": FIVE,
    "third.*2": None,
    "first": SEVEN,
}
EXPECTED_BY_CLASS = {
    "stem": DEFAULT,
    "first.conv1": SEVEN,
    "first.conv2": SEVEN,
    "second.conv1": SIX,
    "second.conv2": SIX,
    "third.conv1": THREE,
    "third.conv2": None,
    "tail": DEFAULT,
    "fc": FIVE,
    "head": EIGHT,
}

OWN_CLASS_FIRST: dict[Any, Any] = {Block: SIX, nn.Conv2d: FIVE, nn.Module: None, Net: THREE}
EXPECTED_OWN_CLASS_FIRST = {
    name: None if name in ("fc", "head") else FIVE for name in EXPECTED_BY_CLASS
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


Prepare = Callable[[Mapping[Any, Any]], Audit]


def in_simulation(overrides: Mapping[Any, Any]) -> Audit:
    student: Any = simulate(network(), DEFAULT, 8, overrides=overrides)
    return student.zaq_audit


def in_fx(overrides: Mapping[Any, Any]) -> Audit:
    return zaq_fx.audit(zaq_fx.prepare(network(), (images(),), DEFAULT, overrides=overrides))


def in_fx_training(overrides: Mapping[Any, Any]) -> Audit:
    prepared = zaq_fx.prepare(network(), (images(),), DEFAULT, qat=True, overrides=overrides)
    return zaq_fx.audit(prepared)


def in_pt2e(overrides: Mapping[Any, Any]) -> Audit:
    exported = torch.export.export(network(), (images(),)).module()
    quantizer = zaq_pt2e.PWLQQuantizer(DEFAULT, overrides=overrides)
    return zaq_pt2e.audit(prepare_pt2e(exported, quantizer))


def in_nncf(overrides: Mapping[Any, Any]) -> Audit:
    student = zaq_nncf.quantize(
        network(), [images()], DEFAULT, overrides=overrides, bias_correction=None
    )
    return zaq_nncf.audit(student)


HOSTS = [
    pytest.param(in_simulation, id="simulation"),
    pytest.param(in_fx, id="fx"),
    pytest.param(in_fx_training, id="fx-training"),
    pytest.param(in_pt2e, id="pt2e"),
    pytest.param(in_nncf, id="nncf"),
]


def specs(records: Audit) -> dict[str, str | None]:
    """The label of every layer's format; None where it is not one of ours."""
    return {
        r.name: r.spec if r.quantized and "NNCF's own" not in str(r.spec) else None for r in records
    }


@pytest.mark.parametrize("prepare", HOSTS)
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        pytest.param(TABLE, EXPECTED, id="names"),
        pytest.param(BY_CLASS, EXPECTED_BY_CLASS, id="classes"),
        pytest.param(OWN_CLASS_FIRST, EXPECTED_OWN_CLASS_FIRST, id="own-class-first"),
    ],
)
def test_one_table_gives_the_same_formats_in_every_host(
    prepare: Prepare, overrides: dict[Any, Any], expected: dict[str, Any]
) -> None:
    labels = {name: None if spec is None else spec.label for name, spec in expected.items()}
    assert specs(prepare(overrides)) == labels
    assert specs(prepare(dict(reversed(overrides.items())))) == labels


# FX's grids belong to the layer that makes a tensor: within a block that is the same.
@pytest.mark.parametrize(
    ("prepare", "layers"),
    [
        pytest.param(in_simulation, ["conv1", "conv2"], id="simulation"),
        pytest.param(in_pt2e, ["conv1", "conv2"], id="pt2e"),
        pytest.param(in_fx, ["conv2"], id="fx"),
        pytest.param(in_fx_training, ["conv2"], id="fx-training"),
    ],
)
def test_pairs_say_the_activations_too(prepare: Prepare, layers: list[str]) -> None:
    records = prepare({"first": (SIX, 5), Wide: (EIGHT, 6), "tail": (None, 4), "second": THREE})
    for block, bits in (("first", 5), ("second", 8), ("third", 6)):
        for layer in layers:
            label = str(records[f"{block}.{layer}"].activation)
            assert label.startswith((f"uniform {bits} bits", f"uniform {bits}b MAC")), label
    assert not records["tail"].quantized


def test_simulation_keeps_the_width_of_the_input_unless_a_pair_says_otherwise() -> None:
    for override, bits in ((SIX, 8), ((SIX, 5), 5)):
        student: Any = simulate(network(), DEFAULT, 4, input_bits=8, overrides={"stem": override})
        assert student.stem.input_fake_quant.bits == bits
        assert student.tail.input_fake_quant.bits == 4


def test_simulation_s_first_and_last_layer_yield_to_overrides() -> None:
    options: dict[str, Any] = {"first_last": (EIGHT, 7), "overrides": {"head": SIX}}
    student: Any = simulate(network(), DEFAULT, 4, **options)
    formats = specs(student.zaq_audit)
    assert (formats["stem"], formats["head"]) == (EIGHT.label, SIX.label)
    assert student.head.input_fake_quant.bits == 7
    assert student.zaq_audit["stem"].reason == "first or last layer"
    assert specs(simulate(network(), DEFAULT, 4, first_last=EIGHT).zaq_audit)["stem"] == EIGHT.label
    with pytest.raises(TypeError, match="^first_last: expected a weight format .*; got 8"):
        simulate(network(), DEFAULT, 4, first_last=8)  # type: ignore[arg-type]


@pytest.mark.parametrize("prepare", HOSTS)
@pytest.mark.parametrize(
    ("overrides", "error", "text"),
    [
        ({"stme": SIX}, ValueError, r"^overrides: no layer matches 'stme' .did you mean 'stem'\?"),
        ({nn.Conv3d: SIX}, ValueError, r"^overrides: no layer matches Conv3d .did you mean Conv2d"),
        (
            {"fc": 4},
            TypeError,
            r"^overrides\['fc'\]: expected a .*format such as a PWLQSpec.*; got 4",
        ),
        ({3: SIX}, TypeError, r"^overrides\[3\]: a key is a layer's name, a pattern"),
        (["fc"], TypeError, r"^overrides must be a mapping such as"),
    ],
)
def test_the_same_errors_in_every_host(
    prepare: Prepare, overrides: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        prepare(overrides)
