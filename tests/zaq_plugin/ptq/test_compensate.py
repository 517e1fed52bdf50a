"""Error feedback on students: levels, errors and biases, measured on the layers themselves."""

import copy
from typing import Any

import pytest
import torch
from layers import float_weight, quantized_layers, view_of, weight_fake_quant
from torch import Tensor, nn

from zaq_plugin.ptq import (
    audit,
    calibrate,
    compensate,
    compensate_rounding,
    correct_bias,
    simulate,
)
from zaq_plugin.ptq.compound import ResidualFakeQuantize, install
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_plugin.pwlq.cells import levels_of


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 4, 2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


def images(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.avg_pool2d(
        torch.randn(8 * count, 3, 14, 14, generator=generator), 3, 1
    )
    return list((3 * smooth + 0.5).split(8))


def student_of(model: nn.Module, spec: QuantSpec, bits: int | None = 8) -> nn.Module:
    student = simulate(model, spec, bits, example_inputs=(images()[0],), depthwise="as-told")
    if bits is not None:
        calibrate(student, images())
    return student


def inputs_of(student: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """What each layer of a student multiplies."""
    seen: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda m, args, name=name: seen.__setitem__(name, args[0].double())
        )
        for name, layer in quantized_layers(student)
    ]
    with torch.no_grad():
        student(torch.cat(batches))
    for handle in handles:
        handle.remove()
    return seen


def output(layer: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """A float layer's output in float64 with another weight and bias, channels first."""
    plain: Any = copy.deepcopy(layer)
    plain.weight = nn.Parameter(weight.double())
    plain.bias = None if bias is None else nn.Parameter(bias.double())
    with torch.no_grad():
        out: Tensor = plain.forward(x)
    axis = out.dim() - 1 if isinstance(layer, nn.Linear) else 1
    return out.transpose(0, axis).flatten(1)


SPECS = [
    UniformSpec(3, "asymmetric", "mse"),
    PWLQSpec(3),
    PWLQSpec(3, breakpoints=2, symmetry="symmetric"),
    PWLQSpec(3, grid="float", policy="search"),
    PWLQSpec(3, overlapping=True),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_outputs_come_closer_on_the_same_levels_and_means_agree(spec: QuantSpec) -> None:
    model = network()
    student = student_of(model, spec)
    results = compensate_rounding(student, images(), model)
    seen, moved = inputs_of(student, images()), 0.0
    errors = torch.zeros(2, dtype=torch.float64)
    for name, layer in quantized_layers(student):
        plain: Any = model.get_submodule(name)
        quantizer: Any = weight_fake_quant(layer)
        levels = levels_of(quantizer.edges, spec)
        weight: Tensor = layer.weight.detach()  # type: ignore[union-attr, operator, assignment]
        axis = quantizer.ch_axis
        for row, grid in zip(weight.movedim(axis, 0).flatten(1), levels, strict=True):
            assert set(row.tolist()) <= set(grid.tolist())
        x = seen[name]
        expected = output(plain, plain.weight.detach(), plain.bias, x)
        error = output(plain, weight, layer.bias, x) - expected  # type: ignore[arg-type]
        assert float(error.mean(1).abs().max()) < 1e-5  # the bias has taken the mean error
        plainly = quantizer(plain.weight.detach())
        unbiased = output(plain, plain.weight.detach(), None, x)
        second = output(plain, plainly, None, x) - unbiased
        mine = output(plain, weight, None, x) - unbiased
        if name == "6":
            assert "ConvTranspose2d does not multiply patches" in results[name].reason
            assert torch.equal(weight, plainly)
            continue
        ratio = mine.square().mean(1) / second.square().mean(1)
        assert float(ratio.max()) <= 1 + 1e-6  # no channel is worse than with its nearest levels
        assert results[name].before == pytest.approx(float(second.square().mean()), rel=1e-4)
        assert results[name].after == pytest.approx(float(mine.square().mean()), rel=1e-4)
        moved += results[name].moved
        errors += torch.stack([mine.square().mean(), second.square().mean()])
    assert moved > 0.1
    assert float(errors[0]) < 0.9 * float(errors[1])


class SameAsTensorFlow(nn.Conv2d):
    """Pads so that stride 2 halves any size, as timm's Conv2dSame does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))


class Gained(nn.Linear):
    """Multiplies by its weight times two."""

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = input @ (2 * self.weight).mT + self.bias
        return out


def test_a_forward_of_its_own_makes_no_difference_to_what_is_chosen() -> None:
    """The oracle is the same network with its padding written out before plain layers."""
    torch.manual_seed(0)
    own = nn.Sequential(
        SameAsTensorFlow(3, 8, 3, 2, bias=False),
        nn.ReLU(),
        SameAsTensorFlow(8, 8, 3, 1, 0, 1, 8),
        nn.ReLU(),
        SameAsTensorFlow(8, 6, 2),
    )
    plain = nn.Sequential()
    for layer in own:
        if isinstance(layer, nn.Conv2d):
            plain.append(nn.ZeroPad2d((0, 1, 0, 1)))
            sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride
            has_bias = layer.bias is not None
            plain.append(nn.Conv2d(*sizes, groups=layer.groups, bias=has_bias))
            plain[-1].load_state_dict(layer.state_dict())
        else:
            plain.append(layer)
    students = [student_of(model.eval(), PWLQSpec(3), None) for model in (own, plain)]
    results = [
        list(compensate_rounding(student, images(), model).values())
        for student, model in zip(students, (own, plain), strict=True)
    ]
    assert results[0] == results[1]
    assert all(result.moved > 0.01 and not result.reason for result in results[0])
    pairs = zip(*(quantized_layers(student) for student in students), strict=True)
    for (name, mine), (_, oracle) in pairs:
        assert torch.equal(float_weight(mine), float_weight(oracle)), name
        assert torch.equal(mine.bias, oracle.bias), name  # type: ignore[arg-type]


def test_a_weight_that_is_changed_before_it_multiplies_is_left_and_told() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), Gained(4 * 100, 5)).eval()
    student = student_of(model, PWLQSpec(3), None)
    gained = dict(quantized_layers(student))["3"]
    before = float_weight(gained).clone()
    results = compensate_rounding(student, images(), model)
    assert results["0"].reason == ""
    assert results["3"].reason == (
        "the forward of Gained gives its weight, as it stands, to no convolution and no linear "
        "operator, and does not compute what Linear does"
    )
    assert torch.equal(float_weight(gained), before)


def test_layer_by_layer_is_the_same_as_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    once, one_by_one = (student_of(network(), PWLQSpec(3)) for _ in range(2))
    monkeypatch.setattr(compensate, "PATCHES", 24 * 10)  # ten of each sample are drawn
    compensate_rounding(once, images(), network())
    compensate_rounding(one_by_one, images(), network(), memory=0)
    for (name, a), (_, b) in zip(quantized_layers(once), quantized_layers(one_by_one), strict=True):
        assert torch.equal(a.weight, b.weight), name  # type: ignore[arg-type]
        assert torch.allclose(a.bias, b.bias, atol=1e-6), name  # type: ignore[arg-type]


def test_a_second_call_changes_nothing() -> None:
    model = network()
    student = student_of(model, PWLQSpec(3))
    compensate_rounding(student, images(), model)
    state = {k: v.clone() for k, v in student.state_dict().items()}
    compensate_rounding(student, images(), model)
    correct_bias(student, images(), reference=model)
    for key, value in student.state_dict().items():
        assert torch.allclose(value, state[key], atol=1e-6), key


def test_weights_stay_close_to_the_float_ones_and_can_be_trained() -> None:
    model = network()
    student = student_of(model, PWLQSpec(3))
    compensate_rounding(student, images(), model)
    layer: Any = student[2]
    quantizer: Any = weight_fake_quant(layer)
    levels = levels_of(quantizer.edges, quantizer.spec)
    step = levels.diff(dim=1).amax(1).view(-1, 1, 1, 1)
    distance = (float_weight(layer) - model[2].weight).abs().detach()
    written = (layer.weight - model[2].weight).abs().detach()
    assert bool((distance <= written + 1e-6).all())
    assert float((distance / step).mean()) < float((written / step).mean())
    student(images()[0]).square().mean().backward()
    assert float(float_weight(layer).grad.abs().max()) > 0  # type: ignore[union-attr]


def test_the_audit_measures_noise_against_the_float_model() -> None:
    model = network()
    student = student_of(model, PWLQSpec(3))
    compensate_rounding(student, images(), model)
    for record in audit(student, reference=model).records:
        weight = model.get_submodule(record.name).weight.detach().double()  # type: ignore[operator, union-attr]
        rounded = student.get_submodule(record.name).weight.detach().double()  # type: ignore[operator, union-attr]
        noise = 10 * torch.log10(weight.square().sum() / (weight - rounded).square().sum())
        assert record.sqnr_db == pytest.approx(float(noise), abs=1e-3)


def test_a_weight_of_several_tensors_is_left_with_its_reason() -> None:
    student = student_of(network(), UniformSpec(3, "asymmetric", "mse"))
    layer = student[2]
    quantizer: Any = weight_fake_quant(layer)
    weight = float_weight(layer).detach()
    install(view_of(layer), ResidualFakeQuantize(quantizer.spec, quantizer.ch_axis, weight))
    before = layer.weight.detach().clone()
    results = compensate_rounding(student, images(), network())
    assert "its weight has two tensors" in results["2"].reason
    assert torch.equal(layer.weight, before)
    assert results["0"].reason == ""


class Tied(nn.Module):
    """Two layers with one weight, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.twice = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.second(self.first(x).relu())).relu())


def test_shared_weights_are_rounded_once_and_layers_called_twice_for_both_inputs() -> None:
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(64, 6) @ torch.randn(6, 6)
    student: Any = simulate(model, UniformSpec(3, "asymmetric", "mse"), None)
    results = compensate_rounding(student, [x], model)
    assert results["second"].reason.startswith("it shares its weight with 'first'")
    assert torch.equal(student.second.weight, student.first.weight)
    rounded = student.twice.weight.detach().clone()
    # As it was when it was rounded: its own nearest levels, the layers before it done.
    float_weight(student.twice).data.copy_(model.twice.weight)
    student.twice.bias.data.copy_(model.twice.bias)
    calls: list[Tensor] = []
    student.twice.register_forward_pre_hook(lambda m, args: calls.append(args[0].double()))
    with torch.no_grad():
        student(x)
    both = torch.cat(calls)
    assert len(both) == 2 * len(x)
    for weight, expected in (
        (student.twice.weight, results["twice"].before),
        (rounded, results["twice"].after),
    ):
        error = (weight - model.twice.weight).detach().double() @ both.mT
        assert float(error.square().mean()) == pytest.approx(expected, rel=1e-4)
    for name in ("first", "second"):  # the shared weight's error leaves both biases
        layer = getattr(student, name)
        x_in = x if name == "first" else student.first(x).relu()
        error = (layer.weight - model.first.weight).detach().double() @ x_in.detach().double().mT
        shift = (layer.bias - getattr(model, name).bias).detach().double()
        assert float((error.mean(1) + shift).abs().max()) < 1e-5
    assert results["twice"].after < results["twice"].before


def test_half_precision() -> None:
    model, batches = network().bfloat16(), [x.bfloat16() for x in images()]
    # Two bits, so that the weights' error stands above bfloat16's own on any processor.
    student, nearest = (simulate(model, PWLQSpec(2), None) for _ in range(2))
    compensate_rounding(student, batches, model)
    correct_bias(nearest, batches)
    with torch.no_grad():
        expected, x = network().double()(torch.cat(images()).double()), torch.cat(batches)
        error, before = (
            float((s(x).double() - expected).square().mean()) for s in (student, nearest)
        )
    assert error < before
    layer: Any = student[0]
    assert float_weight(layer).dtype == torch.bfloat16
    quantizer: Any = weight_fake_quant(layer)
    step = levels_of(quantizer.edges, quantizer.spec).diff(dim=1).amax(1).view(-1, 1, 1, 1)
    weight: Any = model[0].weight
    written, closest = (
        ((w - weight).abs() / step).mean() for w in (layer.weight, float_weight(layer))
    )
    assert float(closest) < 0.7 * float(
        written
    )  # not the levels: the values closest to the weights


@pytest.mark.parametrize("spec", SPECS[:2], ids=lambda s: s.label)
def test_one_grid_per_tensor(spec: QuantSpec) -> None:
    model = network()
    student = simulate(model, spec, None, per_tensor=True)
    results = compensate_rounding(student, images(), model)
    weight: Any = student[2].weight
    quantizer: Any = weight_fake_quant(student[2])
    assert set(weight.flatten().tolist()) <= set(levels_of(quantizer.edges, spec)[0].tolist())
    done = [r for r in results.values() if r.before is not None and r.after is not None]
    assert sum(r.after for r in done) < sum(r.before for r in done)  # type: ignore[misc]


def test_a_layer_that_no_batch_reaches_is_told() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aux = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Unused().eval()
    student = simulate(model, PWLQSpec(3), None)
    results = compensate_rounding(student, [torch.randn(8, 4)], model)
    assert results["aux"].reason == "no batch reaches it"
    assert results["aux"].before is None
    assert results["used"].reason == ""


def test_what_cannot_be_done() -> None:
    student = student_of(network(), PWLQSpec(3))
    with pytest.raises(ValueError, match=r"compensate_rounding got no batches; give at least one"):
        compensate_rounding(student, [], network())
    with pytest.raises(ValueError, match="has no fake-quantized weights"):
        compensate_rounding(network(), images(), network())
    broken = student_of(network(), PWLQSpec(3), None)
    with pytest.raises(ValueError, match=r"layer '0': the second moments .* are not finite"):
        compensate_rounding(broken, [torch.full((2, 3, 12, 12), torch.nan)], network())
    student = student_of(network(), PWLQSpec(3))
    with pytest.raises(ValueError, match=r"the float model has no layer '0'; pass the model that"):
        compensate_rounding(student, images(), nn.ReLU())
    other = nn.Sequential(nn.Conv2d(3, 8, 5))
    with pytest.raises(
        ValueError, match=r"layer '0' is \(8, 3, 5, 5\), the student's \(8, 3, 3, 3\)"
    ):
        compensate_rounding(student, images(), other)
