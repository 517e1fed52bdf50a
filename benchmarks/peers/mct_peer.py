"""Sony's Model Compression Toolkit (https://github.com/sony/model_optimization).

plain: post-training quantization, clips of least squared error, bias correction, all of which are
its defaults. best: gradient-based post-training quantization (GPTQ, its soft rounding) on top, by
its defaults, which estimate a Hessian for every image; with less effort than one, for 32 images.
The target is its default one with the request's widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import model_compression_toolkit as mct
from torch import Tensor

from benchmarks.peers.base import PeerRequest, PeerResult, layer_sizes

STEPS = 1000
"""Of GPTQ, at effort one, in as many epochs as they need."""


def quantize(request: PeerRequest) -> PeerResult:
    """MCT on a target of the request's widths."""
    best = request.recipe == "best"
    sizes = layer_sizes(request.model, request.weight_bits)
    target = _target(request.weight_bits, request.activation_bits)
    data = _representative(request)
    if best:
        batches = len(request.calibration.split(request.batch))
        epochs = max(1, round(STEPS * request.effort / batches))
        every = request.effort >= 1
        config = mct.gptq.get_pytorch_gptq_config(
            n_epochs=epochs, use_hessian_sample_attention=every
        )
        done, _ = mct.gptq.pytorch_gradient_post_training_quantization(
            request.model, data, gptq_config=config, target_platform_capabilities=target
        )
        note = f"GPTQ, {epochs} epochs, Hessians of {'all' if every else '32'} images"
    else:
        done, _ = mct.ptq.pytorch_post_training_quantization(
            request.model, data, target_platform_capabilities=target
        )
        note = "post-training quantization, its defaults"
    return PeerResult(
        done.eval(),
        sizes,
        notes=[note],
        protocol={
            "first_last": "as all layers, the network's input too",
            "residual_adds": "quantized",
            "symmetry": "symmetric weights; activation ranges a power of two",
        },
    )


def _representative(request: PeerRequest) -> Callable[[], Iterator[list[Tensor]]]:
    def batches() -> Iterator[list[Tensor]]:
        for part in request.calibration.split(request.batch):
            yield [part]

    return batches


def _target(weight_bits: int, activation_bits: int) -> Any:
    """The default target with one configuration for every operator."""
    target = mct.get_target_platform_capabilities()

    def changed(options: Any) -> Any:
        if options is None:
            return None
        base = options.base_config or options.quantization_configurations[0]
        weights = {
            name: (
                value.model_copy(update={"weights_n_bits": weight_bits})
                if name == "kernel_attr" and value.enable_weights_quantization
                else value
            )
            for name, value in base.attr_weights_configs_mapping.items()
        }
        config = base.model_copy(
            update={
                "attr_weights_configs_mapping": weights,
                "activation_n_bits": activation_bits,
                "supported_input_activation_n_bits": (activation_bits,),
            }
        )
        return options.model_copy(
            update={"quantization_configurations": (config,), "base_config": config}
        )

    operators = tuple(
        op.model_copy(update={"qc_options": changed(op.qc_options)}) for op in target.operator_set
    )
    return target.model_copy(
        update={"default_qco": changed(target.default_qco), "operator_set": operators}
    )
