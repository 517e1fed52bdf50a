"""Which layer gets which format: defaults, names, patterns, types; and what is refused."""

import pytest
import torch
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import zaq_fx
from zaq_fx.layers import layers_of
from zaq_plugin.fake_quantize import ActivationFakeQuantize, PWLQActivationFakeQuantize
from zaq_plugin.observers import MinMaxObserver, PercentileObserver
from zaq_plugin.pwlq import PWLQSpec, UniformSpec

FOUR, SIX, EIGHT = PWLQSpec(bits=4), PWLQSpec(bits=6), UniformSpec(bits=8)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.body(self.conv(x)))
        return self.head(torch.relu(self.fc(self.norm(x.mean((2, 3))))))


X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def formats(overrides, model=None, give_model=True):
    torch.manual_seed(0)
    model = model or Mixed().eval()
    mapping = zaq_fx.pwlq_qconfig_mapping(
        FOUR, overrides=overrides, model=model if give_model else None
    )
    prepared = prepare_fx(model, mapping, (X,), backend_config=zaq_fx.pwlq_backend_config())
    return {layer.name: layer.spec for layer in layers_of(prepared)}


def test_everything_by_default():
    names = ["conv", "body.0", "body.2", "up", "fc", "head"]
    assert formats({}) == dict.fromkeys(names, FOUR)


def test_names_win_over_patterns_over_types():
    specs = formats({"body.0": EIGHT, "body.*": SIX, nn.Conv2d: None, nn.Linear: (SIX, 6)})
    assert specs == {
        "conv": None,
        "body.0": EIGHT,
        "body.2": SIX,
        "up": FOUR,
        "fc": SIX,
        "head": SIX,
    }


def test_names_and_patterns_need_no_model():
    specs = formats({"body.0": EIGHT, "body.*": SIX}, give_model=False)
    assert (specs["body.0"], specs["body.2"], specs["conv"]) == (EIGHT, SIX, FOUR)


@pytest.mark.parametrize("give_model", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_the_most_specific_pattern_wins(give_model, turned):
    overrides = {"*": None, "body.*": EIGHT, "bod?": FOUR, "body.?": SIX, "body.[2]": None}
    overrides = dict(reversed(overrides.items())) if turned else overrides
    specs = formats(overrides, give_model=give_model)
    # "body.*" has as many characters as "body.?" and "body.[2]" besides wildcards; then length
    # counts, then the order.
    first = EIGHT if not turned else SIX
    assert (specs["body.0"], specs["body.2"], specs["conv"]) == (first, None, None)


@pytest.mark.parametrize("give_model", [True, False])
def test_a_pattern_may_mean_a_module_around(give_model):
    specs = formats({"bo?y": SIX, "b*y.2": EIGHT}, give_model=give_model)
    assert (specs["body.0"], specs["body.2"], specs["conv"]) == (SIX, EIGHT, FOUR)


def test_every_call_of_a_layer_has_its_override():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.last = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.last(self.conv(torch.relu(self.conv(x))))

    for key in ("conv", "c*v", "conv*"):
        prepared = zaq_fx.prepare(Twice(), (X,), FOUR, overrides={key: SIX})
        specs = {layer.name: layer.spec for layer in layers_of(prepared)}
        assert len(specs) == 3
        assert specs.pop("last") == FOUR
        assert set(specs.values()) == {SIX}


class Own(nn.Module):
    """A block with a functional layer: the model around is rewritten as a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(torch.relu(self.conv(x)), self.weight)


def test_classes_are_those_of_the_model_as_it_was_given():
    model = nn.Sequential(Own(), nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)))
    prepared = zaq_fx.prepare(model, (X,), FOUR, overrides={Own: SIX, nn.Conv2d: EIGHT})
    specs = {layer.name: layer.spec for layer in layers_of(prepared)}
    assert specs.pop("0.conv") == EIGHT
    assert specs.pop("1") == EIGHT
    assert len(specs) == 1  # the functional one has no class of its own
    assert set(specs.values()) <= {SIX, EIGHT}


def test_a_type_reaches_layers_fused_with_relu():
    assert formats({nn.Linear: EIGHT})["fc"] == EIGHT
    assert formats({nn.Conv2d: None})["body.0"] is None


def test_functions_are_overridden_by_the_host():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return torch.add(self.conv(x), x)

    mapping = zaq_fx.pwlq_qconfig_mapping(overrides={torch.add: None})
    prepared = prepare_fx(Sum().eval(), mapping, (X,), backend_config=zaq_fx.pwlq_backend_config())
    prepared(X)
    converted = convert_fx(prepared, backend_config=zaq_fx.pwlq_backend_config())
    targets = {n.target for n in converted.graph.nodes}
    assert torch.add in targets
    assert torch.ops.quantized.add not in targets


def test_transposed_convolutions_get_one_grid_per_tensor():
    prepared = zaq_fx.prepare(Mixed(), (X,), SIX, overrides={"up": FOUR})
    zaq_fx.calibrate(prepared, [X])
    layer = next(layer for layer in layers_of(prepared) if layer.name == "up")
    expected = layer.quantized()
    assert expected.axis is None
    converted = zaq_fx.convert(prepared)
    stored = zaq_fx.integer_weight(converted.up)
    assert torch.equal(stored.dequantize(), expected.dequantize())
    assert zaq_fx.audit(converted)["up"].kernel.startswith("int8 conv_transpose2d")


@pytest.mark.parametrize("qat", [False, True])
def test_activation_options(qat):
    factory = zaq_fx.pwlq_qconfig(
        FOUR, 6, qat=qat, observer=PercentileObserver, symmetric_activations=True
    ).activation
    watcher = factory()
    assert isinstance(watcher, ActivationFakeQuantize)
    assert bool(watcher.fake_quant_enabled) == qat  # calibration only observes
    inner = watcher.activation_post_process
    assert isinstance(inner, PercentileObserver)
    assert (inner.bits, inner.symmetric, inner.dtype) == (6, True, torch.quint8)


def test_pwlq_activations_are_fake_quantizers_in_both_modes():
    for qat in (False, True):
        watcher = zaq_fx.pwlq_qconfig(FOUR, PWLQSpec(bits=4), qat=qat).activation()
        assert isinstance(watcher, PWLQActivationFakeQuantize)


def test_learnable_training_parts():
    qconfig = zaq_fx.pwlq_qconfig(FOUR, 4, qat=True, learnable=True)
    assert isinstance(qconfig.activation().scale, nn.Parameter)
    assert isinstance(qconfig.weight().theta, nn.Parameter)
    with pytest.raises(ValueError, match="needs qat=True"):
        zaq_fx.pwlq_qconfig(learnable=True)


def test_observer_partials_keep_their_arguments():
    observer = MinMaxObserver.with_args(eps=2**-12)
    assert zaq_fx.pwlq_qconfig(FOUR, 4, observer=observer).activation().eps == 2**-12
    assert zaq_fx.pwlq_qconfig(FOUR, 4, observer=observer, qat=True).activation().eps == 2**-12


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: zaq_fx.pwlq_qconfig(4), TypeError, "spec must be a format such as a PWLQSpec"),
        (lambda: zaq_fx.pwlq_qconfig(FOUR, None), TypeError, "no weight-only kernels"),
        (lambda: zaq_fx.pwlq_qconfig(FOUR, 16), ValueError, "2 to 8 bits; got 16"),
        (lambda: formats({"nowhere": SIX}), ValueError, r"no layer matches 'nowhere'\. .* conv, b"),
        (lambda: formats({"zz*": None}), ValueError, r"no layer matches 'zz\*'\. .* conv, b"),
        (lambda: formats({nn.Conv1d: None}), ValueError, "overrides: no layer matches Conv1d"),
        (lambda: formats({nn.Conv2d: None}, give_model=False), ValueError, "need model="),
        (lambda: formats({"co*": (FOUR, None)}), TypeError, r"\['co\*'\]: .*no weight-only ker"),
        (lambda: formats({torch.add: 4}), TypeError, r"overrides\[add\]: expected a weight form"),
        (lambda: formats({"conv": 6}), TypeError, r"overrides\['conv'\]: expected a weight f"),
    ],
)
def test_nonsense_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
