"""`with_pwlq` around the quantizers of other devices that ExecuTorch's wheel has.

They annotate and convert here; what runs their files needs toolchains that are not Python packages.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def xnnpack() -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    config = get_symmetric_quantization_config(is_per_channel=True)
    return XNNPACKQuantizer().set_global(config)


def core_ml() -> Any:
    from coremltools.optimize.torch.quantization.quantization_config import (
        LinearQuantizerConfig,
        QuantizationScheme,
    )
    from executorch.backends.apple.coreml.quantizer import CoreMLQuantizer

    chosen = {"quantization_scheme": QuantizationScheme.symmetric, "weight_per_channel": True}
    return CoreMLQuantizer(LinearQuantizerConfig.from_dict({"global_config": chosen}))


def arm() -> Any:
    from executorch.backends.arm.quantizer.arm_quantizer import (
        TOSAQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.backends.arm.tosa import TosaSpecification

    quantizer = TOSAQuantizer(TosaSpecification.create_from_string("TOSA-1.0+INT"))
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    return quantizer


def qualcomm() -> Any:
    from executorch.backends.qualcomm.quantizer.quantizer import QnnQuantizer

    return QnnQuantizer()


def vulkan() -> Any:
    from executorch.backends.vulkan.quantizer.vulkan_quantizer import (
        VulkanQuantizer,
        get_symmetric_quantization_config,
    )

    config = get_symmetric_quantization_config(is_dynamic=False, weight_bits=8)
    return VulkanQuantizer().set_global(config)


@pytest.mark.slow
@pytest.mark.parametrize("make", [xnnpack, core_ml, arm, qualcomm, vulkan])
def test_layers_have_the_formats_levels(
    make: Callable[[], Any], net: nn.Module, images: Tensor
) -> None:
    import zaq_pt2e
    from zaq_plugin.ptq import fold_batch_norm
    from zaq_plugin.pwlq import PWLQSpec, quantize

    try:
        base = make()
    except (ImportError, OSError) as error:
        pytest.skip(f"its quantizer cannot be imported here: {error}")
    graph = torch.export.export(net, (images,)).module()
    prepared = prepare_pt2e(graph, zaq_pt2e.with_pwlq(base, PWLQSpec()))
    zaq_pt2e.calibrate(prepared, [images])
    converted = convert_pt2e(prepared)
    done = {record.name for record in zaq_pt2e.audit(converted) if record.stored_bits == 5}
    assert done
    weights = dict(fold_batch_norm(net, (images,)).named_parameters())
    there = [w for w in converted.state_dict().values() if w.dtype == torch.int8]
    for name in done:
        codes = quantize(weights[f"{name}.weight"].detach(), PWLQSpec()).integer_weight()
        assert any(w.shape == codes.shape and torch.equal(w, codes) for w in there), name
