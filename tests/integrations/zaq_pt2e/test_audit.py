import math

import pytest
import torch
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from zaq_plugin.pwlq import PWLQSpec, quantize
from zaq_pt2e import PWLQQuantizer, audit


@pytest.fixture
def prepared(net, images, export):
    model = prepare_pt2e(export(net, images), PWLQQuantizer(PWLQSpec(bits=4), exclude=["conv"]))
    with torch.no_grad():
        model(images)
    return model


def test_a_prepared_model_is_simulated(prepared):
    records = audit(prepared)
    assert [r.name for r in records] == ["stem", "conv", "fc"]
    assert {r.kernel for r in records.quantized} == {"simulated"}
    assert records["conv"].reason == "excluded by 'conv'"


def test_a_converted_model_says_widths_sizes_and_losses(prepared, net):
    records = audit(convert_pt2e(prepared))
    weight = net.fc.weight.detach()
    packed = quantize(weight, PWLQSpec(bits=4))
    record = records["fc"]
    assert (record.mac_bits, record.stored_bits) == (4, 5)
    assert record.stored_bytes == packed.stored_bytes
    noise = (packed.dequantize() - weight).double().square().sum()
    expected = 10 * math.log10(weight.double().square().sum() / noise)
    assert record.sqnr_db == pytest.approx(expected, abs=1e-6)
    assert record.numel == weight.numel()
    assert record.kind == "Linear"
    assert record.kernel == "int8 Linear once lowered"
    assert record.activation == "uniform 8 bits per tensor"
    assert records["conv"].kernel == "float32 Conv2d"
    assert "PWLQ 4b MAC/5b stored" in str(records)


def test_a_lowered_model_tells_its_kernels(prepared, images):
    with torch.no_grad():
        converted = convert_pt2e(prepared)
        lowered = lower_pt2e_quantized_to_x86(converted, (images,))
    records = audit(converted, lowered=lowered)
    assert records["fc"].kernel == "onednn.qlinear_pointwise"
    assert records["stem"].kernel == "onednn.qconv_pointwise"
    with pytest.raises(ValueError, match=r"Use audit\(converted, lowered=lowered\)"):
        audit(lowered)


def test_weight_only_runs_in_float(net, images, export):
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer(activations=None))
    records = audit(convert_pt2e(prepared))
    assert records["fc"].kernel == "float32 Linear on dequantized weights"
    assert records["fc"].activation == "float32"


def test_a_model_that_nobody_quantized_is_an_error(net, images, export):
    with pytest.raises(ValueError, match=r"(?s)nothing was quantized.*no quantizer annotated it"):
        audit(export(net, images))
