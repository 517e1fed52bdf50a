"""What a host converts computes what the student computes, or an error names the first layer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hosts import Way
from networks import perturb
from processor import KERNELS_ARE_EXACT
from torch import Tensor, nn

import zaq_fx.checking
import zaq_fx.flow
import zaq_nncf.stripping
import zaq_pt2e.flow
from zaq_plugin.ptq import calibrate
from zaq_plugin.pwlq import PWLQSpec, UniformSpec
from zaq_plugin.student.hand_over import difference, inputs_at_hand, keep_inputs, module_side
from zaq_pt2e.graph import argument, layers, tensor_at

X = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))
SEVEN = UniformSpec(7, "symmetric")
CONVERTING = [Way("fx"), Way("fx", train=True), Way("pt2e"), Way("pt2e", train=True), Way("nncf")]
every_conversion = pytest.mark.parametrize("way", CONVERTING, ids=lambda way: way.id)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.norm(self.first(x)).relu()).relu())


def student(way: Way, spec: Any = SEVEN, activations: int = 7) -> nn.Module:
    torch.manual_seed(0)
    prepared = way.prepare(perturb(Net()).eval(), (X,), spec, activations)
    calibrate(prepared, [X])
    return prepared


def break_second(monkeypatch: pytest.MonkeyPatch, way: Way) -> None:
    """Let the host convert the second layer to another one."""
    if way.host == "fx":
        stock = zaq_fx.flow.convert_fx

        def wrong_fx(*args: Any, **kwargs: Any) -> Any:
            converted = stock(*args, **kwargs)
            layer = converted.get_submodule("second")
            layer.set_weight_bias(layer.weight(), layer.bias() + 3)
            return converted

        monkeypatch.setattr(zaq_fx.flow, "convert_fx", wrong_fx)
    elif way.host == "pt2e":
        stock_pt2e = zaq_pt2e.flow.convert_pt2e

        def wrong_pt2e(model: Any) -> Any:
            converted = stock_pt2e(model)
            layer = next(x for x in layers(converted) if x.name == "second")
            tensor_at(converted, str(argument(layer.node, 2).target)).data.add_(3)
            return converted

        monkeypatch.setattr(zaq_pt2e.flow, "convert_pt2e", wrong_pt2e)
    else:
        stock_write = zaq_nncf.stripping.write_levels

        def wrong_write(model: Any, *args: Any) -> None:
            stock_write(model, *args)
            model.second.bias.data.add_(3)

        monkeypatch.setattr(zaq_nncf.stripping, "write_levels", wrong_write)


@every_conversion
@pytest.mark.parametrize("spec", [SEVEN, PWLQSpec(2)], ids=["seven", "pwlq2"])
def test_right_conversions_pass(way: Way, spec: Any) -> None:
    """At two bits the student is far from the float model, and its conversion close to it."""
    prepared = student(way, spec)
    assert inputs_at_hand(prepared) is not None
    converted = way.convert(prepared)
    assert inputs_at_hand(converted) is None  # a deployed model keeps no data
    assert converted(X).shape == (8, 4, 5, 5)


@every_conversion
def test_a_wrong_conversion_names_the_first_layer(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = student(way)
    break_second(monkeypatch, way)
    words = (
        r"does not compute what .* outputs have -?\d+\.\d dB \(\d+ are demanded\), and layer "
        r"'second' is the first whose output differs, though its input is right.*check=False"
    )
    with pytest.raises(ValueError, match=words):
        way.convert(prepared)


@pytest.mark.parametrize("way", CONVERTING[::2], ids=lambda way: way.id)
def test_off_by_name_and_without_a_batch(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    convert: dict[str, Any] = {
        "fx": zaq_fx.flow.convert,
        "pt2e": zaq_pt2e.flow.convert,
        "nncf": zaq_nncf.stripping.strip,
    }
    prepared = student(way)
    break_second(monkeypatch, way)
    assert convert[way.host](copy.deepcopy(prepared), check=False) is not None
    keep_inputs(prepared, None)
    assert convert[way.host](prepared) is not None


def test_a_copy_shares_the_batch_and_a_file_does_not_hold_it() -> None:
    prepared = student(Way("simulated"))
    call = inputs_at_hand(prepared)
    assert call is not None
    assert inputs_at_hand(copy.deepcopy(prepared)) is call
    loaded = pickle.loads(pickle.dumps(prepared.__dict__["zaq_inputs"]))  # noqa: S301
    assert loaded.value is None


def test_saturation_is_a_warning_and_in_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = student(Way("fx"), UniformSpec(8, "symmetric", overflow="allowed"), 8)
    break_second(monkeypatch, Way("fx"))
    monkeypatch.setattr(zaq_fx.checking, "saturates", lambda module: True)
    with pytest.warns(zaq_fx.checking.Saturation, match="layer 'second': torch's int8 kernel"):
        converted = zaq_fx.convert(prepared)
    assert "adds two products in 16 bits" in zaq_fx.audit(converted)["second"].reason
    monkeypatch.setattr(zaq_fx.checking, "saturates", lambda module: False)
    with pytest.raises(ValueError, match="layer 'second' is the first whose output differs"):
        zaq_fx.convert(prepared)


def test_seven_bits_do_not_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = student(Way("fx"))
    break_second(monkeypatch, Way("fx"))
    monkeypatch.setattr(zaq_fx.checking, "saturates", lambda module: True)
    with pytest.raises(ValueError, match="layer 'second' is the first whose output differs"):
        zaq_fx.convert(prepared)


def test_a_conversion_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = student(Way("fx"))
    stock = zaq_fx.flow.convert_fx

    def wrong(*args: Any, **kwargs: Any) -> Any:
        converted = stock(*args, **kwargs)
        converted.set_submodule("third", nn.Linear(7, 7))
        return converted

    monkeypatch.setattr(zaq_fx.flow, "convert_fx", wrong)
    words = "converted model cannot be run on the batch at hand, which the prepared model takes: "
    with pytest.raises(ValueError, match=words):
        zaq_fx.convert(prepared)


def test_preparation_by_stock_calls_is_proved_in_calibration() -> None:
    """The graph that the quantizer saw, and the float model by name, are compared with the twin."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    import zaq_pt2e

    model = perturb(Net()).eval()
    graph = torch.export.export(model, (X,)).module()
    prepared = prepare_pt2e(graph, zaq_pt2e.PWLQQuantizer())
    with torch.no_grad():
        dict(prepared.named_parameters())["second.bias"].data.add_(3)  # no version is counted
    words = "the prepared model is not the float model.* 'third' is the first whose input differs"
    with pytest.raises(ValueError, match=words):
        zaq_pt2e.calibrate(prepared, [X])
    zaq_pt2e.calibrate(prepared, [X])  # said once
    prepared = zaq_fx.prepare(model, (X,))
    with torch.no_grad():
        prepared.second.bias.add_(3)
    with pytest.raises(ValueError, match=words):
        zaq_fx.calibrate(prepared, [X], float_model=model)


def test_a_trained_model_is_not_taken_for_a_prepared_one() -> None:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    import zaq_pt2e

    graph = torch.export.export(perturb(Net()).eval(), (X,)).module()
    prepared = prepare_qat_pt2e(graph, zaq_pt2e.PWLQQuantizer(qat=True))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.5)
    prepared(X).square().mean().backward()
    optimizer.step()
    zaq_pt2e.calibrate(prepared, [X])


def test_a_difference_behind_the_last_layer() -> None:
    model = perturb(Net()).eval()
    other = nn.Sequential(model, nn.Sigmoid())
    source = module_side("one", model, {n: m for n, m in model.named_modules() if n})
    target = module_side("the other", other, {n: m for n, m in model.named_modules() if n})
    call = ((X,), {})
    assert difference(source, source, call, 100) is None
    gap = difference(source, target, call, 20)
    assert gap is not None
    assert str(gap.place) == "what differs lies behind layer 'third'"
    assert difference(source, target, call, 20, noise_db=lambda: -10.0) is None


def test_kernels_that_saturate_are_known_by_their_answers() -> None:
    """Depthwise kernels of FBGEMM always do; others where the processor has no VNNI."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "plain": (nn.Conv2d(16, 16, 3, padding=1), (4, 16, 6, 6)),
        "rows": (nn.Conv1d(16, 8, 3), (4, 16, 9)),
        "linear": (nn.Linear(16, 8), (4, 16)),
        "transposed": (nn.ConvTranspose2d(16, 8, 2, 2), (4, 16, 6, 6)),
        "depthwise": (nn.Conv2d(144, 144, 3, padding=1, groups=144), (4, 144, 6, 6)),
    }
    for name, (layer, shape) in shapes.items():
        x = torch.randn(shape)
        prepared = zaq_fx.prepare(nn.Sequential(layer).eval(), (x,), UniformSpec(8, "symmetric"))
        zaq_fx.calibrate(prepared, [x])
        module = zaq_fx.convert(prepared, check=False).get_submodule("0")
        if name == "depthwise" and torch.backends.quantized.engine in ("x86", "fbgemm"):
            assert zaq_fx.checking.saturates(module)
        elif KERNELS_ARE_EXACT:
            assert not zaq_fx.checking.saturates(module), name
