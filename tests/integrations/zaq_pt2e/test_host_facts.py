"""What zaq_pt2e leans on in torchao and torch.export, fact by fact.

If one of these fails after an upgrade, the host has changed: the test's name and text say what, the
code that leans on it is named behind "Used by".
"""

import copy
import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase, move_exported_model_to_train
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from zaq_plugin._host_module import HostModule
from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.observers import PWLQPerChannelObserver, TopKMedianObserver
from zaq_plugin.pwlq import PWLQSpec
from zaq_pt2e import _compat, parts
from zaq_pt2e.bias import InputMean

aten = torch.ops.aten
ops = torch.ops.quantized_decomposed


class One(Quantizer):
    """Annotates the weight (and input) of every convolution with given constructors."""

    def __init__(self, weight, activation=None, reverse=False, callback=None):
        self.weight, self.activation = weight, activation
        self.reverse, self.callback = reverse, callback

    def annotate(self, model):
        for node in model.graph.nodes:
            if node.target is aten.conv2d.default:
                edges = [(node.args[0], self.activation), (node.args[1], self.weight)]
                node.meta[_compat.ANNOTATION] = QuantizationAnnotation(
                    dict(edges[::-1] if self.reverse else edges), _annotated=True
                )
        return model

    def validate(self, model):
        pass

    def prepare_obs_or_fq_callback(self, model, edge_or_node_to_obs_or_fq):
        if self.callback:
            self.callback(model, edge_or_node_to_obs_or_fq)


def weight_spec(constructor):
    return QuantizationSpec(
        torch.int8, constructor, -127, 127, torch.per_channel_symmetric, ch_axis=0
    )


def act_spec(constructor):
    return QuantizationSpec(torch.uint8, constructor, 0, 255, torch.per_tensor_affine)


def x86(qat=False):
    config = get_default_x86_inductor_quantization_config(is_qat=qat)
    return X86InductorQuantizer().set_global(config)


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3)).eval()


@pytest.fixture
def conv_bn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3)).eval()
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def exported(model, images, strict=False):
    return torch.export.export(model, (images,), strict=strict).module()


def test_export_shares_parameters_with_the_model(conv, images):
    """Used by: batch_norm.own_tensors, before training."""
    assert next(exported(conv, images).parameters()) is conv[0].weight


def test_convert_is_asked_of_every_observer(conv, images):
    """Used by: conversion.convert_weight."""
    asked = []

    class PerChannelProbe(PWLQPerChannelObserver):
        def convert(self, model, node):
            asked.append((model, node))
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)

    prepared = prepare_pt2e(exported(conv, images), One(weight_spec(PerChannelProbe)))
    convert_pt2e(prepared)
    ((model, node),) = asked
    assert isinstance(model, torch.fx.GraphModule)
    assert node.op == "call_module"


def test_ch_axis_goes_to_classes_named_per_channel_only(conv, images):
    """Used by: the names of our weight modules."""
    seen = {}

    class PerChannelProbe(PWLQPerChannelObserver):
        def __init__(self, **kwargs):
            seen["PerChannel"] = "ch_axis" in kwargs
            super().__init__(**kwargs)

    class OtherProbe(PWLQPerChannelObserver):
        def __init__(self, **kwargs):
            seen["other"] = "ch_axis" in kwargs
            super().__init__(**kwargs)

    for cls in (PerChannelProbe, OtherProbe):
        prepare_pt2e(exported(conv, images), One(weight_spec(cls)))
    assert seen == {"PerChannel": True, "other": False}


def test_an_unregistered_observer_stays_in_the_graph_without_an_error(conv, images):
    """Used by: conversion._register; hosts never tell that nothing was quantized."""

    class PerChannelStranger(HostModule):
        def __init__(self, **kwargs):
            super().__init__()

        def forward(self, w):
            return w

    prepared = prepare_pt2e(exported(conv, images), One(weight_spec(PerChannelStranger)))
    converted = convert_pt2e(prepared)
    left = [n for n in converted.graph.nodes if "activation_post_process" in str(n.target)]
    assert [n.op for n in left] == ["call_module"]


def test_our_plain_classes_are_registered_as_torchao_s(conv, images):
    """Used by: conversion._register (both bases are ABCs)."""
    assert isinstance(TopKMedianObserver(), ObserverBase)
    assert isinstance(PWLQPerChannelFakeQuantize(), FakeQuantizeBase)
    assert type(PWLQPerChannelFakeQuantize()).__mro__[1:3] != (FakeQuantizeBase, ObserverBase)


def test_prepared_models_know_which_function_prepared_them(conv, images):
    """Used by: _compat.prepared_for_qat."""
    spec = weight_spec(PWLQPerChannelObserver.with_args(spec=PWLQSpec()))
    for prepare, expected in ((prepare_pt2e, False), (prepare_qat_pt2e, True)):
        prepared = prepare(exported(conv, images), One(spec))
        assert _compat.prepared_for_qat(prepared) is expected
        assert _compat.prepared_for_qat(copy.deepcopy(prepared)) is expected
    assert _compat.prepared_for_qat(exported(conv, images)) is None


@pytest.mark.slow
def test_conv_bn_in_training_takes_edges_by_order(conv_bn, images):
    """Used by: PWLQQuantizer._annotate_layer, which lists the input first."""
    weight = weight_spec(PWLQPerChannelFakeQuantize.with_args(spec=PWLQSpec()))

    def observed(reverse):
        quantizer = One(weight, act_spec(TopKMedianObserver), reverse=reverse)
        prepared = prepare_qat_pt2e(exported(conv_bn, images), quantizer)
        (node,) = [n for n in prepared.graph.nodes if n.target is aten.conv2d.default]
        return type(prepared.get_submodule(node.args[1].target)).__name__

    assert observed(False) == "PWLQPerChannelFakeQuantize"
    assert observed(True) == "TopKMedianObserver"


def test_conv_bn_in_training_is_scaled_divided_and_normalised_with_eps_1e_5(conv_bn, images):
    """Used by: folding.fused_norm, batch_norm.prepare_batch_norms (the model's eps is 1e-3)."""
    weight = weight_spec(PWLQPerChannelFakeQuantize.with_args(spec=PWLQSpec()))
    prepared = prepare_qat_pt2e(exported(conv_bn, images), One(weight))
    (conv,) = [n for n in prepared.graph.nodes if n.target is aten.conv2d.default]
    product = conv.args[1].args[0]
    assert product.target is aten.mul.Tensor
    ratio = product.args[1].args[0]
    assert ratio.target is aten.div.Tensor
    assert ratio.args[1].target is aten.sqrt.default
    (division,) = conv.users
    assert division.args[1].args[0] is ratio
    (norm,) = division.users
    assert norm.target is aten.batch_norm.default
    assert norm.args[7] == _compat.HOST_BN_EPS == 1e-5


def test_the_switch_to_training_writes_eps_1e_5(conv_bn, images):
    """Used by: batch_norm.prepare_batch_norms, set_training."""
    model = exported(conv_bn, images)
    move_exported_model_to_train(model)
    (norm,) = [n for n in model.graph.nodes if n.target is aten.batch_norm.default]
    assert norm.args[5] is True
    assert norm.args[7] == 1e-5


def test_train_and_eval_of_a_prepared_model_raise(conv, images):
    """Used by: set_training, and the twin's own train and eval."""
    prepared = prepare_pt2e(exported(conv, images), x86())
    for method in (prepared.train, prepared.eval):
        with pytest.raises(NotImplementedError, match="not supported for exported models"):
            method()


@pytest.mark.slow
def test_a_zero_gamma_gives_nan_in_the_host_s_training(conv_bn, images):
    """Used by: batch_norm._clamp_gamma."""
    with torch.no_grad():
        conv_bn[1].weight[0] = 0
    prepared = prepare_qat_pt2e(exported(conv_bn, images), One(None))
    assert prepared(images).isnan().any()


def test_batch_norm_without_affine_breaks_the_host_s_training(images):
    """Used by: batch_norm._add_affine."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)).eval()
    prepared = prepare_qat_pt2e(exported(model, images), One(None))
    with pytest.raises(RuntimeError, match="got None"):
        prepared(images)


@pytest.mark.parametrize("kind", ["conv3d", "linear"])
def test_there_is_no_training_pattern_for(kind, images):
    """Used by: fusion.fuse."""
    model, x = {
        "conv3d": (
            nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)),
            torch.randn(2, 3, 4, 4, 4),
        ),
        "linear": (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(2, 3)),
    }[kind]
    prepared = prepare_qat_pt2e(exported(model.eval(), x), One(None))
    targets = [str(n.target) for n in prepared.graph.nodes]
    assert not [t for t in targets if "aten.div" in t]
    assert [t for t in targets if "batch_norm" in t]


def test_a_grouped_transposed_convolution_with_batch_norm_cannot_be_prepared():
    """Used by: fusion.fuse, for our quantizers. For others: zaq_plugin.ptq.fold_batch_norm."""
    from zaq_plugin.ptq import fold_batch_norm

    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)).eval()
    x = torch.randn(2, 4, 5, 5)
    with pytest.raises(RuntimeError, match="must match the size"):
        prepare_pt2e(exported(model, x), One(None))
    prepared = prepare_pt2e(fold_batch_norm(exported(model, x)), One(None))
    assert (prepared(x) - model(x)).abs().max() < 1e-5


class Skipped(nn.Module):
    """A convolution whose output goes past its BatchNorm, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        nn.init.constant_(self.bn.running_mean, 2)

    def forward(self, x):
        y = self.conv(x)
        return y - self.bn(y)


def test_the_host_folds_a_convolution_that_is_used_elsewhere(images):
    """Used by: _compat.replace_fusion, fusion.fuse; for other quantizers it stays like this."""
    model = Skipped().eval()
    prepared = prepare_pt2e(exported(model, images), One(None))
    assert (prepared(images) - model(images)).abs().max() > 1


def test_the_host_fuses_before_it_asks_the_quantizer(conv_bn, images):
    """Used by: _compat.replace_fusion: transform_for_annotation comes too late."""
    seen = []

    class Late(One):
        def transform_for_annotation(self, model):
            seen.extend(str(n.target) for n in model.graph.nodes)
            return model

    prepare_pt2e(exported(conv_bn, images), Late(None))
    assert any("conv2d" in name for name in seen)
    assert not any("batch_norm" in name for name in seen)


def test_the_host_s_fusion_is_replaced_for_quantizers_of_a_kind_alone(conv_bn, images):
    """Used by: _compat.replace_fusion, which reads prepare_pt2e's argument ``quantizer``."""
    fused = []

    class Ours(One):
        pass

    host = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    before = {name: getattr(host, name) for name in _compat._FUSIONS}
    try:
        _compat.replace_fusion(Ours, fused.append)
        prepare_pt2e(exported(conv_bn, images), One(None))
        assert fused == []
        prepare_pt2e(exported(conv_bn, images), quantizer=Ours(None))
        assert len(fused) == 2
    finally:
        for name, function in before.items():
            setattr(host, name, function)


def test_the_host_moves_annotations_of_a_weight_that_two_layers_read(images):
    """Used by: fusion._read_apart: in training the second one is not quantized otherwise."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(self.conv(x)) + self.conv(x)

    weight = weight_spec(PWLQPerChannelFakeQuantize.with_args(spec=PWLQSpec()))
    prepared = prepare_qat_pt2e(exported(Twice().eval(), images), One(weight))
    convolutions = [n for n in prepared.graph.nodes if n.target is aten.conv2d.default]
    assert sorted(n.args[1].op for n in convolutions) == ["call_module", "get_attr"]


def test_the_host_looks_for_batch_norm_once_more_in_conversion(conv, images):
    """Used by: _compat.spare_folding."""
    host = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    before, asked = host._fold_conv_bn_qat, []
    try:
        _compat.spare_folding(lambda model: bool(asked.append(model)) or True)
        spec = weight_spec(PWLQPerChannelObserver.with_args(spec=PWLQSpec()))
        prepared = prepare_pt2e(exported(conv, images), One(spec))
        convert_pt2e(prepared)
        assert len(asked) == 1
    finally:
        host._fold_conv_bn_qat = before


@pytest.mark.parametrize(
    ("switch", "name"),
    [
        (torch.no_grad, "wrap_with_set_grad_enabled"),
        (lambda: torch.autocast("cpu", enabled=False), "wrap_with_autocast"),
    ],
)
def test_parts_under_a_switch_are_graphs_of_their_own(switch, name):
    """Used by: parts.inline_parts. The order of the arguments is no promise of torch's."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            with switch():
                y = self.layer(x)
                z = y * 2
            return y + z

    model, x = Wrapped(), torch.randn(3, 4)
    graph = exported(model, x)
    (node,) = [n for n in graph.graph.nodes if "wrap" in str(n.target)]
    assert node.target.name() == name
    part = graph.get_submodule(node.args[_compat.WRAPPERS[name]].target)
    assert [n.target for n in part.graph.nodes if n.target is aten.linear.default]
    assert parts.inline_parts(graph) == 1
    torch.testing.assert_close(graph(x), model(x))


def test_the_callback_may_add_impure_nodes_that_live_until_conversion(conv, images):
    """Used by: bias.watch_inputs."""

    def add(model, modules):
        (conv_node,) = [n for n in model.graph.nodes if n.target is aten.conv2d.default]
        model.add_submodule("watch", InputMean())
        with model.graph.inserting_after(conv_node):
            model.graph.call_module("watch", (conv_node.args[0],))

    spec = weight_spec(PWLQPerChannelObserver.with_args(spec=PWLQSpec()))
    prepared = prepare_pt2e(exported(conv, images), One(spec, callback=add))
    prepared.graph.eliminate_dead_code()
    prepared(images)
    assert int(prepared.watch.count) == len(images)
    assert "watch" not in {str(n.target) for n in convert_pt2e(prepared).graph.nodes}


def test_quantize_per_channel_reproduces_every_level(images):
    """Used by: conversion._emit: scale * int8 goes through unchanged, whatever the scale."""
    scale = torch.rand(64, generator=torch.Generator().manual_seed(0)) * 10 ** torch.linspace(
        -9, 3, 64
    )
    integers = torch.arange(-127, 128, dtype=torch.float32)
    values = integers * scale.unsqueeze(1)
    grid = (scale, torch.zeros(64, dtype=torch.int32), 0, -127, 127, torch.int8)
    codes = ops.quantize_per_channel.default(values, *grid)
    assert torch.equal(codes.float(), integers.expand(64, -1))
    assert torch.equal(ops.dequantize_per_channel.default(codes, *grid), values)


def test_constant_folding_deletes_top_level_weights_only(conv, images):
    """Used by: conversion._emit, which keeps the float weight at the top, without dots."""
    prepared = prepare_pt2e(exported(conv, images), x86())
    prepared(images)
    assert "0.weight" in convert_pt2e(prepared).state_dict()  # the host's own stays behind


def test_custom_notes_survive_export_save_and_load(conv, images, tmp_path):
    """Used by: graph.add_note, read by audit."""
    model = exported(conv, images)
    for node in model.graph.nodes:
        if node.target is aten.conv2d.default:
            node.meta["custom"] = {"note": {"a": 1.5, "b": None}}
    torch.export.save(torch.export.export(model, (images,)), tmp_path / "m.pt2")
    loaded = torch.export.load(tmp_path / "m.pt2").module()
    (node,) = [n for n in loaded.graph.nodes if n.target is aten.conv2d.default]
    assert node.meta["custom"]["note"] == {"a": 1.5, "b": None}


def test_a_fused_kernel_ignores_a_narrow_grid(images):
    """Used by: conversion.convert_activation, which clamps before it quantizes below 8 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    prepared = prepare_pt2e(exported(model, images, strict=True), x86())
    with torch.no_grad():
        prepared(images)
        converted = convert_pt2e(prepared)
        for node in converted.graph.nodes:
            if "quantize_per_tensor" in str(node.target):
                node.args = (*node.args[:4], 15, node.args[5])
        converted.recompile()
        lowered = lower_pt2e_quantized_to_x86(converted, (images,))
        error = (lowered(images) - converted(images)).norm() / converted(images).norm()
    assert error > 0.1


def test_lowered_kernels_are_onednn_s_and_read_the_scale(conv, images):
    """Used by: _compat.lowered_name, audit.lowered_kernels."""
    prepared = prepare_pt2e(exported(conv, images, strict=True), x86())
    with torch.no_grad():
        prepared(images)
        lowered = lower_pt2e_quantized_to_x86(convert_pt2e(prepared), (images,))
    (kernel,) = [n for n in lowered.graph.nodes if _compat.lowered_name(n.target)]
    assert _compat.lowered_name(kernel.target) == "onednn.qconv_pointwise"
    assert any(n.op == "get_attr" and "_scale" in n.target for n in kernel.all_input_nodes)


@pytest.mark.slow
def test_int8_patterns_are_registered_by_an_import(conv, images):
    """Used by: _compat.register_int8_kernels. Without it lowering gives float kernels, silently."""
    script = """
import sys, torch
import torchao.quantization.pt2e.lowering
import torchao.quantization.pt2e.quantize_pt2e
import zaq_pt2e
assert torch._inductor.config.pre_grad_custom_pass is None
assert "torchao.quantization.pt2e.inductor_passes.x86" not in sys.modules
zaq_pt2e._compat.register_int8_kernels()
assert torch._inductor.config.pre_grad_custom_pass is not None
assert "torchao.quantization.pt2e.inductor_passes.x86" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=environment())


def test_the_x86_quantizer_wants_a_strict_export_where_a_relu_is_used_twice(images):
    """Known limit of the base, not of PWLQQuantizer."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.conv2, self.relu = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x):
            return self.relu(self.conv2(self.relu(self.conv(x))) + x)

    model = Residual().eval()
    with pytest.raises(ValueError, match="Input partition has more than one output node"):
        prepare_pt2e(exported(model, images), x86())
    prepare_pt2e(exported(model, images, strict=True), x86())


def test_constructors_tell_their_class():
    """Used by: with_pwlq, to see whether a base makes fake-quantizers."""
    for qat in (False, True):
        config = get_default_x86_inductor_quantization_config(is_qat=qat)
        assert _compat.is_fake_quantize(config.weight.observer_or_fake_quant_ctr) is qat
    assert _compat.is_fake_quantize(PWLQPerChannelFakeQuantize.with_args(spec=PWLQSpec()))
    assert not _compat.is_fake_quantize(TopKMedianObserver.with_args(k=3))
