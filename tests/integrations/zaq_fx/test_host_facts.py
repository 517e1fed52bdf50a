"""What torch.ao does that this package leans on, or works around.

Most of it is undocumented. Each test names one fact; when a new torch changes one, its test fails
and says what has to be looked at.
"""

import warnings

import pytest
import torch
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.nn.quantized.reference as nnqr
from torch import nn
from torch.ao.quantization import (
    FakeQuantizeBase,
    QConfig,
    default_observer,
    default_per_channel_weight_observer,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.backend_config import get_native_backend_config
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

import zaq_fx
from zaq_fx import _compat
from zaq_fx.activations import watcher_nodes
from zaq_fx.backend import UNLOWERED, kernel_is_right
from zaq_fx.kept import KeptFloat
from zaq_plugin.observers import MinMaxObserver, PWLQPerChannelObserver
from zaq_plugin.pwlq import PWLQSpec


def plain(model, images, mapping=None):
    mapping = mapping or zaq_fx.pwlq_qconfig_mapping(PWLQSpec(bits=4))
    backend = zaq_fx.pwlq_backend_config()
    prepared = prepare_fx(model, mapping, (images,), backend_config=backend)
    prepared(images)
    return prepared, backend


def test_the_scale_reaches_from_float_as_the_object_that_calculate_qparams_returned(
    make_net, images
):
    """Our weight format travels on it (zaq_plugin.observers.weight_format)."""
    returned, received = [], []

    class Spy(PWLQPerChannelObserver):
        def calculate_qparams(self):
            scale, zero_point = super().calculate_qparams()
            returned.append(scale)
            return scale, zero_point

    torch.ao.quantization.ObserverBase.register(Spy)

    class Reference:
        @staticmethod
        def from_float(module, qparams):
            received.append(qparams["scale"])
            return nnqr.Linear.from_float(module, qparams)

    backend = get_native_backend_config()
    for pattern in backend.configs:
        if pattern.reference_quantized_module is nnqr.Linear:
            pattern.set_reference_quantized_module(Reference)
    activation = MinMaxObserver.with_args()
    mapping = get_default_qconfig_mapping().set_global(QConfig(activation, Spy.with_args()))
    prepared = prepare_fx(make_net(), mapping, (images,), backend_config=backend)
    prepared(images)
    convert_fx(prepared, backend_config=backend)
    assert len(received) == 1
    assert any(received[0] is scale for scale in returned)


def test_the_backend_configuration_takes_any_object_with_from_float(make_net, images):
    prepared, backend = plain(make_net(), images)
    references = [p.reference_quantized_module for p in backend.configs]
    assert any(isinstance(r, zaq_fx.backend.SnappedReference) for r in references)
    converted = convert_fx(prepared, backend_config=backend)
    assert type(converted.fc) is torch.ao.nn.quantized.Linear


def test_prepared_models_keep_qconfigs_in_their_meta(make_net, images):
    prepared, _ = plain(make_net(), images)
    assert _compat.is_prepared(prepared)
    assert "fc" in _compat.qconfigs_of(prepared)
    assert not _compat.is_prepared(make_net())


def test_conversion_forgets_meta_so_the_audit_is_an_attribute(make_net, images):
    prepared, backend = plain(make_net(), images)
    prepared.meta["mine"] = 1
    assert "mine" not in convert_fx(prepared, backend_config=backend).meta


def test_abstract_bases_accept_plain_classes_by_registration():
    assert isinstance(MinMaxObserver(), torch.ao.quantization.ObserverBase)
    assert MinMaxObserver.__mro__.count(torch.ao.quantization.ObserverBase) == 0
    for cls in zaq_fx.backend.FAKE_QUANTIZERS:
        assert issubclass(cls, FakeQuantizeBase)


def test_weights_of_type_int8_are_silently_left_float(make_net, images):
    """Hence dtype=torch.qint8 in our qconfigs."""
    weight = PWLQPerChannelObserver.with_args(dtype=torch.int8)
    mapping = get_default_qconfig_mapping().set_global(QConfig(MinMaxObserver.with_args(), weight))
    prepared, backend = plain(make_net(), images, mapping)
    converted = convert_fx(prepared, backend_config=backend)
    assert type(converted.fc) is nn.Linear
    with pytest.raises(ValueError, match="nothing was quantized"):
        zaq_fx.audit(converted)


def test_a_type_override_alone_breaks_fused_layers():
    """Hence overrides by module type are written as names, which needs the model."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    qconfig = zaq_fx.pwlq_qconfig()
    mapping = zaq_fx.pwlq_qconfig_mapping().set_object_type(nn.Conv2d, qconfig)
    with pytest.raises(LookupError, match="same qconfigs for all module types"):
        prepare_fx(model, mapping, (torch.randn(1, 3, 8, 8),))


def test_prepare_does_not_copy_parameters(make_net, images):
    """Hence the bias correction makes new parameters, and zaq_fx.prepare copies the model."""
    model = make_net()
    prepared, _ = plain(model, images)
    assert prepared.fc.weight is model.fc.weight


def test_stock_conversion_saturates_activations_at_255_whatever_their_width():
    """Hence clamp_narrow."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).eval()
    nn.init.ones_(model[0].weight)
    mapping = zaq_fx.pwlq_qconfig_mapping(PWLQSpec(bits=4), 4, observer=MinMaxObserver)
    x = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    prepared, backend = plain(model, x, mapping)
    ranges = zaq_fx.narrow_ranges(prepared)
    converted = convert_fx(prepared, backend_config=backend)
    assert float(converted(2 * x).max()) == pytest.approx(2, rel=0.05)
    assert zaq_fx.clamp_narrow(converted, ranges) == 2
    assert float(converted(2 * x).max()) == pytest.approx(1, rel=0.05)


def test_conv_bn_in_training_is_nan_for_zero_gamma_unless_it_takes_the_slow_path():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def stock():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
        nn.init.zeros_(model[1].weight)
        prepared = prepare_qat_fx(model, zaq_fx.pwlq_qat_qconfig_mapping(), (x,))
        return prepared, next(m for m in prepared.modules() if isinstance(m, nniqat.ConvBn2d))

    fast, layer = stock()
    assert layer._enable_slow_path_for_better_numerical_stability is False
    assert not torch.isfinite(fast(x)).all()
    slow, layer = stock()
    _compat.use_exact_batch_norm(layer)
    assert torch.isfinite(slow(x)).all()


@pytest.mark.parametrize("kind", ["ConvBn1d", "ConvBn2d", "ConvBn3d", "ConvBnReLU2d"])
def test_our_subclasses_are_found_by_the_hosts_patterns(kind):
    ours, theirs = getattr(zaq_fx.backend, kind), getattr(nniqat, kind)
    patterns = {p.pattern: p for p in zaq_fx.pwlq_backend_config().configs}
    assert issubclass(ours, theirs)
    assert patterns[ours].root_module is patterns[theirs].root_module
    assert ours in {p.qat_module for p in patterns.values()}
    assert theirs not in {p.qat_module for p in patterns.values()}


def test_layers_for_training_see_weight_times_factor_behind_a_batch_norm(make_net, images):
    """BatchNormLayer relies on it: the fake-quantizer sees ``w gamma / sqrt(var + eps)``."""
    prepared = zaq_fx.prepare(make_net(), (images,), qat=True).eval()
    stem, seen = prepared.stem, []
    assert isinstance(stem, nniqat.ConvBn2d)
    stem.weight_fake_quant.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    prepared(images)
    factor = stem.bn.weight / torch.sqrt(stem.bn.running_var + stem.bn.eps)
    torch.testing.assert_close(seen[0], stem.weight * factor.reshape(-1, 1, 1, 1))


def test_the_host_announces_its_end_with_these_words(make_net, images):
    """silence_host() hides exactly these; nothing else is hidden."""
    stock = QConfig(default_observer, default_per_channel_weight_observer)
    mapping = get_default_qconfig_mapping().set_global(stock)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared = prepare_fx(make_net(), mapping, (images,))
        prepared(images)
        convert_fx(prepared)
    assert any("torch.ao.quantization is deprecated" in str(w.message) for w in caught)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("something else", UserWarning, stacklevel=1)
        _compat.silence_host()
        prepared = prepare_fx(make_net(), mapping, (images,))
        prepared(images)
        convert_fx(prepared)
    assert [str(w.message) for w in caught] == ["something else"]


def test_quantized_clamp_cuts_at_the_integer():
    x = torch.quantize_per_tensor(torch.linspace(-2, 3, 200), 0.0173, 91, torch.quint8)
    low, high = (80 - 91) * 0.0173, (120 - 91) * 0.0173
    integers = torch.ops.quantized.clamp(x, low, high).int_repr()
    assert torch.equal(integers, x.int_repr().clamp(80, 120))


def test_the_host_does_not_look_into_its_fused_modules_of_other_packages():
    """KeptFloat derives from their base, and has a type that no pattern knows."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), KeptFloat(nn.PReLU(), "a reason")).eval()
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prepared, backend = plain(model, x)
    assert type(prepared.get_submodule("1")) is KeptFloat
    converted = convert_fx(prepared, backend_config=backend)
    assert type(converted.get_submodule("1")) is KeptFloat
    assert type(converted.get_submodule("1.0")) is nn.PReLU


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.a(x)
        return self.b(torch.add(y, torch.sigmoid(y), alpha=5))


def test_stock_conversion_drops_alpha():
    """Hence keep_operators_float."""
    torch.manual_seed(0)
    model, x = Sum().eval(), torch.randn(2, 3, 8, 8)
    prepared, backend = plain(model, x)
    stock = convert_fx(prepared, backend_config=backend)
    assert (stock(x) - model(x)).norm() > 0.5 * model(x).norm()
    prepared, backend = plain(zaq_fx.prepare_model(model), x)
    ours = convert_fx(prepared, backend_config=backend)
    assert (ours(x) - model(x)).norm() < 0.3 * model(x).norm()


def test_one_observer_watches_a_tensor_and_what_is_made_of_it():
    """Hence followers."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(-0.1, 0.1)).eval()
    prepared, _ = plain(model, torch.randn(1, 3, 8, 8))
    watchers = [m for _, m in watcher_nodes(prepared)]
    assert len(watchers) == 3
    assert watchers[1] is watchers[2]
    assert int(watchers[1].activation_post_process.num_batches) == 2  # twice in one batch


@pytest.mark.parametrize("right", [False, True])
def test_transposed_convolutions_of_another_type_are_not_lowered(monkeypatch, right):
    """Hence the classes of UNLOWERED, for kernels that do not compute what they should."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2)).eval()
    monkeypatch.setattr(zaq_fx.backend, "kernel_is_right", lambda reference: right)
    x = torch.randn(2, 3, 6, 6)
    prepared, backend = plain(model, x)
    layer = convert_fx(prepared, backend_config=backend).get_submodule("1")
    lowered = torch.ao.nn.quantized.ConvTranspose2d
    assert type(layer) is (lowered if right else UNLOWERED[nnqr.ConvTranspose2d])


def test_a_kernel_is_tried_against_the_float_operator(monkeypatch):
    torch.manual_seed(0)
    qparams = {
        "qscheme": torch.per_tensor_affine,
        "dtype": torch.qint8,
        "scale": torch.tensor(0.01),
        "zero_point": torch.tensor(0),
    }
    layer = nnqr.ConvTranspose2d.from_float(nn.ConvTranspose2d(4, 4, 2, 2), qparams)
    assert kernel_is_right(layer)
    kernel = torch.ao.nn.quantized.ConvTranspose2d
    forward = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda self, x: forward(self, x.flip(1)))
    assert not kernel_is_right(layer)


def test_normalising_groups_of_few_values_in_channels_last_is_wrong():
    """`zaq_fx.operators` keeps these norms float. Right where all is contiguous."""
    torch.manual_seed(0)
    weight, bias, grid = torch.rand(8) + 0.5, torch.randn(8), (0.04, 128)
    x = torch.quantize_per_tensor(torch.randn(12, 8, 2, 2), 0.03, 120, torch.quint8)
    expected = torch.nn.functional.instance_norm(x.dequantize(), weight=weight, bias=bias)
    expected = torch.quantize_per_tensor(expected, *grid, torch.quint8).dequantize()
    last = x.contiguous(memory_format=torch.channels_last)
    right, wrong = (
        torch.ops.quantized.instance_norm(y, weight, bias, 1e-5, *grid).dequantize()
        for y in (x, last)
    )
    assert float((right - expected).abs().max()) < 0.05
    assert float((wrong - expected).abs().max()) > 1
