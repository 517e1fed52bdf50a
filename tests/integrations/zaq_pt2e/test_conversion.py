import copy
import math

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from zaq_plugin.pwlq import PWLQSpec, quantize
from zaq_pt2e import PWLQQuantizer, audit, freeze_ranges, set_training
from zaq_pt2e.graph import constant_value, layers


def train(prepared, images, steps=2):
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        prepared(images).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("learnable", [False, True])
def test_training_converts_to_what_was_trained(net, images, export, learnable):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    quantizer = PWLQQuantizer(PWLQSpec(bits=4), qat=True, learnable=learnable)
    prepared = prepare_qat_pt2e(export(net, images), quantizer)
    set_training(prepared, True)
    prepared(images)
    freeze_ranges(prepared)
    train(prepared, images)
    gradients = [p.grad for p in prepared.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)  # gamma is 0 in one channel
    set_training(prepared, False)
    with torch.no_grad():
        expected = prepared(images)
        converted = convert_pt2e(prepared)
        assert (converted(images) - expected).abs().max() <= 1e-5
    targets = {str(n.target) for n in converted.graph.nodes}
    assert not {t for t in targets if "batch_norm" in t or "div" in t or "add_." in t}
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("frozen", [False, True], ids=["observing", "frozen"])
def test_converting_in_train_mode_gives_the_same(net, images, export, frozen):
    prepared = prepare_qat_pt2e(export(net, images), PWLQQuantizer(qat=True))
    set_training(prepared, True)
    prepared(images)
    if frozen:
        freeze_ranges(prepared)
    train(prepared, images)
    other = copy.deepcopy(prepared)
    with torch.no_grad():
        one = convert_pt2e(prepared)(images)
        two = convert_pt2e(set_training(other, False))(images)
    assert torch.equal(one, two)


@pytest.mark.slow
def test_the_host_s_own_switches_work_on_a_prepared_model(net, images, export):
    """They write eps = 1e-5 into every BatchNorm; ours has 1e-3 and must not notice."""
    prepared = prepare_qat_pt2e(export(net, images), PWLQQuantizer(qat=True))
    for module in prepared.modules():
        if hasattr(module, "disable_fake_quant"):
            module.disable_fake_quant()
    with torch.no_grad():
        move_exported_model_to_train(prepared)
        move_exported_model_to_eval(prepared)
        error = (prepared(images) - net(images)).norm() / net(images).norm()
    assert error < 1e-4


def test_a_model_exported_in_train_mode_counts_no_batches_after_conversion(net, images, export):
    prepared = prepare_qat_pt2e(export(net.train(), images), PWLQQuantizer(qat=True))
    prepared(images)
    converted = convert_pt2e(prepared)
    assert not [n for n in converted.graph.nodes if "add_" in str(n.target)]
    assert not [n for n in converted.graph.nodes if "batch_norm" in str(n.target)]


def test_a_layer_left_float_is_folded_as_well(net, images, export):
    """The host folds Conv-BN after training only where the weight is quantized."""
    quantizer = PWLQQuantizer(qat=True, exclude=["stem"])
    prepared = prepare_qat_pt2e(export(net, images), quantizer)
    set_training(prepared, False)
    with torch.no_grad():
        expected = prepared(images)
        converted = convert_pt2e(prepared)
        steps = [n.args[1] for n in converted.graph.nodes if "per_tensor" in str(n.target)]
        # Folded or not differs by a rounding error, which may cross one activation step.
        assert (converted(images) - expected).abs().max() <= max(steps)
    assert audit(converted)["stem"].reason == "excluded by 'stem'"
    targets = {str(n.target) for n in converted.graph.nodes}
    assert not {t for t in targets if "batch_norm" in t or "div" in t}


class Other(nn.Module):
    """BatchNorm where the host has no pattern for training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv3d(3, 4, 3, bias=False), nn.BatchNorm3d(4, eps=1e-2)
        self.up, self.bn2 = nn.ConvTranspose3d(4, 6, 2, 2), nn.BatchNorm3d(6)
        self.fc, self.bn1 = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.bn2(self.up(self.bn(self.conv(x)).relu())).relu()
        return self.bn1(self.fc(x.mean((2, 3, 4))))


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
def test_batch_norm_behind_conv3d_and_linear_is_folded(qat, export):
    torch.manual_seed(0)
    model = Other()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    model.eval()
    x = torch.randn(4, 3, 6, 6, 6)
    prepare = prepare_qat_pt2e if qat else prepare_pt2e
    prepared = prepare(export(model, x), PWLQQuantizer(PWLQSpec(bits=6), qat=qat))
    with torch.no_grad():
        prepared(x)
        converted = convert_pt2e(prepared)
        assert not [n for n in converted.graph.nodes if "batch_norm" in str(n.target)]
        assert (converted(x) - model(x)).norm() < 0.1 * model(x).norm()


def test_a_grouped_transposed_convolution_s_batch_norm_is_folded_before_training(export):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, eps=1e-3))
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    x = torch.randn(4, 4, 6, 6)
    exported = export(model.eval(), x)
    prepared = prepare_qat_pt2e(exported, PWLQQuantizer(PWLQSpec(bits=6), qat=True))
    with torch.no_grad():
        assert (prepared(x) - model(x)).norm() < 0.05 * model(x).norm()


def test_observers_in_a_model_prepared_for_training_are_an_error(images, export):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    prepared = prepare_qat_pt2e(export(net, images), PWLQQuantizer())
    prepared(images)
    with pytest.raises(ValueError, match=r"(?s)comes from prepare_qat_pt2e.*qat=True"):
        convert_pt2e(prepared)


def test_a_shared_weight_keeps_one_value_and_two_biases(images, export):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu() + 1)

    torch.manual_seed(0)
    model = Twice().eval()
    prepared = prepare_pt2e(export(model, images), PWLQQuantizer(PWLQSpec(bits=3)))
    with torch.no_grad():
        prepared(images)
        converted = convert_pt2e(prepared)
    first, second = layers(converted)
    expected = quantize(model.conv.weight.detach(), PWLQSpec(bits=3)).dequantize()
    for layer in (first, second):
        assert torch.equal(constant_value(converted, layer.node.args[1]), expected)
    biases = [constant_value(converted, x.node.args[2]) for x in (first, second)]
    assert not torch.equal(*biases)
    assert len(audit(converted)) == 1


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_narrow_activations_are_exact_on_int8_kernels(net, images, export, bits):
    """Kernels saturate at 255; a narrower grid is clamped before it is quantized."""
    quantizer = PWLQQuantizer(activations=bits, input_bits=bits, other_bits=bits)
    prepared = prepare_pt2e(export(net, images), quantizer)
    with torch.no_grad():
        prepared(images * 0.5)  # so that the real range is clipped
        converted = convert_pt2e(prepared)
        lowered = lower_pt2e_quantized_to_x86(converted, (images,))
        expected, output = converted(images), lowered(images)
    scales = [n.args[1] for n in converted.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert (output - expected).abs().max() <= max(scales)
    if bits < 8:
        clamps = [n for n in converted.graph.nodes if "clamp" in str(n.target)]
        assert len(clamps) == sum(
            str(n.target).startswith("quantized_decomposed.quantize_per_tensor")
            for n in converted.graph.nodes
        )
        assert (output - expected).abs().max() <= 1e-5
    kernels = {r.kernel for r in audit(converted, lowered=lowered)}
    assert all(k.startswith("onednn.q") for k in kernels)


def test_the_grid_has_no_more_values_than_its_bits(net, images, export):
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer(activations=4))
    with torch.no_grad():
        prepared(images)
        converted = convert_pt2e(prepared)
    nodes = [n for n in converted.graph.nodes if "dequantize_per_tensor" in str(n.target)]
    widths = {math.log2(n.args[4] - n.args[3] + 1) for n in nodes}
    assert widths == {4, 8}  # 8: the model's input and what is only added or pooled


def test_float_weights_do_not_stay_in_the_state_dict(net, images, export):
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer())
    with torch.no_grad():
        prepared(images)
        converted = convert_pt2e(prepared)
    floats = [v for v in converted.state_dict().values() if v.is_floating_point() and v.dim() > 1]
    assert floats == []


def test_a_calibrated_model_s_state_loads_into_a_fresh_one(net, images, export):
    def prepare():
        return prepare_pt2e(export(net, images), PWLQQuantizer(PWLQSpec(bits=3)))

    first, second = prepare(), prepare()
    with torch.no_grad():
        first(images)
        second.load_state_dict(first.state_dict())
        assert torch.equal(convert_pt2e(first)(images), convert_pt2e(second)(images))


def test_a_prepared_model_compiles(net, images, export):
    prepared = prepare_qat_pt2e(export(net, images), PWLQQuantizer(qat=True))
    set_training(prepared, False)
    with torch.no_grad():
        prepared(images)
        freeze_ranges(prepared)
        expected = prepared(images)
        output = torch.compile(prepared, backend="aot_eager")(images)
    assert (output - expected).abs().max() < 1e-5


@pytest.mark.slow
def test_torch_compile_with_freezing_uses_int8_kernels(net, images, export):
    import torch._inductor.config
    from torch._inductor.utils import run_and_get_code

    prepared = prepare_pt2e(export(net, images), PWLQQuantizer())
    with torch.no_grad():
        prepared(images)
        converted = convert_pt2e(prepared)
        with torch._inductor.config.patch(freezing=True):
            output, code = run_and_get_code(torch.compile(converted), images)
        steps = [n.args[1] for n in converted.graph.nodes if "per_tensor" in str(n.target)]
        assert (output - converted(images)).abs().max() <= max(steps)
    assert "qconv_pointwise" in "".join(code)
    assert "qlinear_pointwise" in "".join(code)
