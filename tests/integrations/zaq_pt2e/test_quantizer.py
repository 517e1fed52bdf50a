import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from zaq_plugin.fake_quantize import PWLQActivationFakeQuantize
from zaq_plugin.observers import MinMaxObserver, PercentileObserver
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize
from zaq_pt2e import PWLQQuantizer, audit
from zaq_pt2e.graph import constant_value, layers


def labels(model):
    return {r.name: (r.spec if r.quantized else r.reason, r.activation) for r in audit(model)}


def convert(model, images, export, *args, **options):
    with torch.no_grad():
        prepared = prepare_pt2e(export(model, images), PWLQQuantizer(*args, **options))
        prepared(images)
        return convert_pt2e(prepared)


def test_every_layer_is_quantized_and_any_batch_size_runs(net, images, export):
    converted = convert(net, images, export)
    assert {r.name for r in audit(converted).quantized} == {"stem", "conv", "fc"}
    assert not [n for n in converted.graph.nodes if "batch_norm" in str(n.target)]
    more = torch.cat([images, images])
    expected = net(more)
    assert (converted(more) - expected).norm() < 0.1 * expected.norm()


def test_overrides_by_name_pattern_and_type(net, images, export):
    eight, three = UniformSpec(bits=8), PWLQSpec(bits=3)
    formats = labels(
        convert(
            net,
            images,
            export,
            PWLQSpec(bits=5),
            overrides={"st*": (three, 4), nn.Linear: eight, "conv": None},
            input_bits=6,
        )
    )
    assert formats["stem"] == (three.label, "uniform 6 bits per tensor")  # the input's own width
    assert formats["fc"] == (eight.label, "uniform 8 bits per tensor")
    assert formats["conv"][0] == "override 'conv' is None"


def test_an_exact_name_wins_over_a_pattern_and_a_pattern_over_a_type(net, images, export):
    specs = [PWLQSpec(bits=b) for b in (3, 4, 5)]
    overrides = {nn.Conv2d: specs[0], "*": specs[1], "conv": specs[2]}
    formats = labels(convert(net, images, export, overrides=overrides))
    assert formats["conv"][0] == specs[2].label
    assert formats["stem"][0] == specs[1].label


def test_a_block_s_name_covers_the_layers_in_it(images, export):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model = nn.Sequential(block, nn.Conv2d(4, 5, 3)).eval()
    formats = labels(convert(model, images, export, overrides={"0": PWLQSpec(bits=3)}))
    assert [v[0].startswith("PWLQ 3b") for v in formats.values()] == [True, True, False]


def test_include_and_exclude_give_their_reason(net, images, export):
    included = labels(convert(net, images, export, include=["stem", "fc"], exclude=["fc"]))
    assert included["fc"][0] == "excluded by 'fc'"
    assert included["conv"][0] == "no include pattern matches it"
    assert included["stem"][0] == PWLQSpec().label


def test_a_key_that_no_layer_matches_is_an_error(net, images, export):
    for options in ({"overrides": {"layer9": None}}, {"exclude": ["layer9"]}):
        with pytest.raises(ValueError, match=r"no layer matches 'layer9'. The model's layers are"):
            convert(net, images, export, **options)
    with pytest.raises(ValueError, match="no layer matches Conv3d"):
        convert(net, images, export, overrides={nn.Conv3d: None})


def test_nothing_to_quantize_is_an_error_with_reasons(net, images, export):
    with pytest.raises(ValueError, match=r"(?s)nothing was quantized: all 3 .*excluded by '\*'"):
        convert(net, images, export, exclude=["*"])
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        convert(nn.Sequential(nn.ReLU()), images, export)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_the_way_out(net, images, export, dtype):
    half = export(net.to(dtype), images.to(dtype))
    with pytest.raises(TypeError, match=rf"stem .Conv2d. has {dtype} weights.*model.float\(\)"):
        prepare_pt2e(half, PWLQQuantizer())


def test_a_weight_that_is_not_finite_names_its_layer(net, images, export):
    with torch.no_grad():
        net.fc.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"fc .Linear.: 1 weights are NaN or infinite"):
        prepare_pt2e(export(net, images), PWLQQuantizer())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"spec": 4}, "expected a format such as a PWLQSpec; got 4"),
        ({"activations": "8"}, "activations must be a number of bits"),
        ({"activations": 9}, "activations must have 2 to 8 bits; got 9"),
        ({"overrides": {3: None}}, r"\[3\]: a key is a layer's name, a pattern .*class; got 3"),
        ({"overrides": {"a": (PWLQSpec(),)}}, r"overrides\['a'\]: expected .*\(weight format"),
        ({"include": "fc"}, "include must be a list of patterns; got the text 'fc'"),
        ({"learnable": True}, "learnable=True trains, which needs qat=True"),
        ({"input_bits": None}, "input_bits must be a number of bits, 2 to 8; got None"),
    ],
)
def test_arguments_that_make_no_sense(arguments, text):
    with pytest.raises((TypeError, ValueError), match=text):
        PWLQQuantizer(**arguments)


def test_weight_only_quantizes_no_activation(net, images, export):
    converted = convert(net, images, export, PWLQSpec(bits=4), None)
    targets = [str(n.target) for n in converted.graph.nodes]
    assert not [t for t in targets if "per_tensor" in t]
    assert len(audit(converted).quantized) == 3
    for layer in layers(converted):
        value = constant_value(converted, layer.node.args[1])
        assert len(value[0].unique()) <= PWLQSpec(bits=4).num_levels


def test_without_calibration_only_activations_complain(net, images, export):
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer(activations=None))
    assert "no bias correction: it saw no calibration batch" in str(
        audit(convert_pt2e(prepared)).records[0].reason
    )
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer())
    with pytest.raises(ValueError, match="has seen no data"):
        convert_pt2e(prepared)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv1d(3, 5, 3), (12,)),
        (nn.Conv1d(3, 5, 3, padding="same"), (12,)),
        (nn.Conv2d(3, 5, 3, padding="same"), (12, 12)),
        (nn.Conv3d(3, 5, 3), (5, 5, 5)),
        (nn.ConvTranspose1d(3, 5, 3, stride=2), (12,)),
        (nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3), (8, 8)),
        (nn.ConvTranspose3d(3, 5, 3), (4, 4, 4)),
        (nn.Linear(12, 5), (12,)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
def test_every_kind_of_layer_lies_on_its_levels(layer, size, qat, export):
    torch.manual_seed(1)
    x = torch.randn(4, 3, *size)
    model = nn.Sequential(layer).eval()
    weight = layer.weight.detach().clone()
    quantizer = PWLQQuantizer(PWLQSpec(bits=3), qat=qat)
    prepared = (prepare_qat_pt2e if qat else prepare_pt2e)(export(model, x), quantizer)
    with torch.no_grad():
        prepared(x)
        converted = convert_pt2e(prepared)
        (entry,) = layers(converted)
        axis = 1 if "Transpose" in type(layer).__name__ else 0
        expected = quantize(weight, PWLQSpec(bits=3), axis).dequantize()
        assert torch.equal(constant_value(converted, entry.node.args[1]), expected)
        assert entry.kind == type(layer).__name__
        assert (converted(x) - model(x)).norm() < 0.15 * model(x).norm()


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.fused = nn.Linear(8, 24), fused

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.fused:
            return nn.functional.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


@pytest.mark.parametrize(("fused", "products"), [(True, 3), (False, 4)])
def test_attention_s_products_are_quantized_where_asked(fused, products, export):
    torch.manual_seed(0)
    model, x = Attention(fused).eval(), torch.randn(4, 5, 8)

    def quantized_inputs(matmul):
        converted = convert(model, x, export, matmul=matmul)
        names = ("matmul", "scaled_dot_product")
        nodes = [n for n in converted.graph.nodes if any(w in str(n.target) for w in names)]
        assert nodes
        sources = [a for n in nodes for a in n.args if isinstance(a, torch.fx.Node)]
        return sum("dequantize_per_tensor" in str(a.target) for a in sources)

    assert quantized_inputs(False) == 0
    assert quantized_inputs(True) == products


@pytest.mark.parametrize("observer", [MinMaxObserver, PercentileObserver.with_args(percent=99.0)])
def test_another_observer(net, images, export, observer):
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer(observer=observer))
    names = {type(m).__name__ for m in prepared.modules()}
    assert getattr(observer, "__name__", "") in names
    with torch.no_grad():
        prepared(images)
        assert len(audit(convert_pt2e(prepared)).quantized) == 3


def test_pwlq_activations_are_simulated_and_refuse_conversion(net, images, export):
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer(activations=PWLQSpec(bits=4)))
    assert any(isinstance(m, PWLQActivationFakeQuantize) for m in prepared.modules())
    with torch.no_grad():
        assert (prepared(images) - net(images)).norm() < 0.3 * net(images).norm()
    assert "simulated" in audit(prepared)["fc"].activation
    with pytest.raises(ValueError, match="are simulated: no int8 kernel computes with them"):
        convert_pt2e(prepared)


def test_a_float_grid_has_no_integers_and_says_so(net, images, export):
    with pytest.raises(ValueError, match=r"(stem|fc|conv): .*Use grid='int8' to convert"):
        convert(net, images, export, PWLQSpec(bits=4, grid="float"))


def test_a_weight_computed_from_the_input_stays_float(images, export):
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            y = self.conv(x).mean((2, 3))
            return nn.functional.linear(self.fc(y), y[:2, :3])

    torch.manual_seed(0)
    records = audit(convert(Dynamic().eval(), images, export))
    assert [r.reason for r in records.skipped] == ["its weight is computed from the model's input"]
    assert len(records.quantized) == 2


def test_a_normalised_weight_is_a_constant_and_is_quantized(images, export):
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x):
            return nn.functional.conv2d(x, (self.weight - self.weight.mean()) * 2)

    torch.manual_seed(0)
    model = Standardised().eval()
    converted = convert(model, images, export, PWLQSpec(bits=4))
    (layer,) = layers(converted)
    floating = ((model.weight - model.weight.mean()) * 2).detach()
    expected = quantize(floating, PWLQSpec(bits=4)).dequantize()
    assert torch.equal(constant_value(converted, layer.node.args[1]), expected)


def test_calibration_leaves_the_user_s_model_alone(net, images, export):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    convert(net, images, export)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
