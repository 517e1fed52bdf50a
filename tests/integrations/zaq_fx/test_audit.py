"""The audit lists every layer once, with its format, its kernel, or its reason."""

import pytest
import torch
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import zaq_fx
from zaq_plugin.pwlq import PWLQSpec, UniformSpec

FOUR = PWLQSpec(bits=4)


def test_prepared_and_converted(make_net, images):
    overrides = {"conv": UniformSpec(bits=8), "fc": None}
    prepared = zaq_fx.prepare(make_net(), (images,), FOUR, overrides=overrides)
    zaq_fx.calibrate(prepared, [images])
    planned = zaq_fx.audit(prepared)
    converted = zaq_fx.convert(prepared)
    for audit, kernel in ((planned, "simulated"), (zaq_fx.audit(converted), "int8 conv2d")):
        assert [r.name for r in audit] == ["stem", "conv", "fc"]
        assert [r.name for r in audit.quantized] == ["stem", "conv"]
        assert audit["fc"].reason == "left float by the qconfig mapping"
        assert (audit["stem"].mac_bits, audit["stem"].stored_bits) == (4, 5)
        assert (audit["conv"].mac_bits, audit["conv"].stored_bits) == (8, 8)
        assert audit["stem"].numel == 8 * 3 * 9
        assert kernel in audit["stem"].kernel
        assert audit["stem"].sqnr_db > 20
    assert zaq_fx.audit(converted)["stem"].kernel.startswith("int8 conv2d_relu (")
    assert "3 layers" in str(planned)
    assert converted.zaq_audit.to_json() == zaq_fx.audit(converted).to_json()


def test_stock_conversion_with_and_without_the_plan(make_net, images):
    backend = zaq_fx.pwlq_backend_config()
    mapping = zaq_fx.pwlq_qconfig_mapping(FOUR)
    prepared = prepare_fx(make_net(), mapping, (images,), backend_config=backend)
    prepared(images)
    planned = zaq_fx.audit(prepared)
    converted = convert_fx(prepared, backend_config=backend)
    with_plan = zaq_fx.audit(converted, planned)
    assert all(r.spec == FOUR.label for r in with_plan)
    alone = zaq_fx.audit(converted)
    assert len(alone.quantized) == 3
    assert all("levels a channel" in r.spec for r in alone)
    assert all("guessed from the integers" in r.reason for r in alone)
    assert alone["stem"].stored_bits <= FOUR.stored_bits


def test_nothing_quantized_is_an_error(make_net, images):
    everything = {"stem": None, "conv": None, "fc": None}
    with pytest.raises(ValueError, match="nothing was quantized: all 3 layers"):
        zaq_fx.prepare(make_net(), (images,), FOUR, overrides=everything)
    with pytest.raises(ValueError, match="nothing was quantized: the model has no layer"):
        zaq_fx.prepare(nn.Sequential(nn.ReLU()), (images,))
    with pytest.raises(TypeError, match="audit expects the GraphModule.*got Net"):
        zaq_fx.audit(make_net())


def test_modules_that_fx_keeps_whole_are_listed():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.fc(x)
            return self.attend(x, x, x)[0]

    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    prepared = zaq_fx.prepare(Attention(), (tokens,), FOUR)
    zaq_fx.calibrate(prepared, [tokens])
    audit = zaq_fx.audit(zaq_fx.convert(prepared))
    assert [r.name for r in audit.quantized] == ["fc"]
    assert [(r.name, r.kind) for r in audit.skipped] == [("attend", "MultiheadAttention")]
    assert "as a whole" in audit["attend"].reason
    assert audit["attend"].numel == 4 * 64


def test_layers_with_the_hosts_own_observer_are_told_apart(make_net, images):
    stock = torch.ao.quantization.get_default_qconfig("x86")
    backend = zaq_fx.pwlq_backend_config()
    mapping = zaq_fx.pwlq_qconfig_mapping(FOUR).set_module_name("fc", stock)
    prepared = prepare_fx(make_net(), mapping, (images,), backend_config=backend)
    prepared(images)
    audit = zaq_fx.audit(prepared)
    assert [r.name for r in audit.quantized] == ["stem", "conv"]
    assert "the host's own uniform weight observer" in audit["fc"].reason
    with_plan = zaq_fx.audit(convert_fx(prepared, backend_config=backend), audit)
    assert with_plan["fc"].quantized
    assert "levels a channel" in with_plan["fc"].spec
