"""AIMET's post-training quantization (https://github.com/quic/aimet).

plain: BatchNorm folded, min-max ranges, per-channel weights. best: its documented order for
post-training quantization: cross-layer equalization, then AdaRound on the calibration images, then
activation ranges by signal to noise (``tf_enhanced``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.common.defs import QuantScheme
from aimet_torch.common.quantsim_config import config_utils
from aimet_torch.cross_layer_equalization import equalize_model
from aimet_torch.model_preparer import prepare_model
from aimet_torch.quantsim import QuantizationSimModel

from benchmarks.peers.base import PeerRequest, PeerResult, layer_sizes

ITERATIONS = 1000
"""Of AdaRound in each layer, at effort one; AIMET's default is 15,000."""


def quantize(request: PeerRequest) -> PeerResult:
    """Prepare, fold or equalize, round, simulate, calibrate."""
    best, notes = request.recipe == "best", []
    model = prepare_model(request.model)
    config = str(Path(config_utils.__file__).parent / "default_config_per_channel.json")
    scheme = QuantScheme.post_training_tf_enhanced if best else QuantScheme.post_training_tf
    if best:
        equalize_model(model, dummy_input=request.example)
        iterations = max(1, round(ITERATIONS * request.effort))
        notes.append(f"cross-layer equalization, AdaRound ({iterations} iterations a layer)")
    else:
        fold_all_batch_norms(model, None, dummy_input=request.example)
        notes.append("BatchNorm folded, min-max")
    batches = request.calibration.split(request.batch)
    with tempfile.TemporaryDirectory() as folder:
        if best:
            images: Any = request.calibration
            loader: Any = torch.utils.data.DataLoader(images, batch_size=request.batch)
            parameters = AdaroundParameters(loader, len(loader), iterations)
            model = Adaround.apply_adaround(
                model,
                request.example,
                parameters,
                folder,
                "rounded",
                default_param_bw=request.weight_bits,
                default_quant_scheme=scheme,
                default_config_file=config,
            )
        sim = QuantizationSimModel(
            model,
            dummy_input=request.example,
            quant_scheme=scheme,
            default_output_bw=request.activation_bits,
            default_param_bw=request.weight_bits,
            config_file=config,
        )
        if best:
            sim.set_and_freeze_param_encodings(str(Path(folder) / "rounded.encodings"))
    _input_at_eight_bits(sim.model)

    def run(quantized: Any, _: Any = None) -> None:
        with torch.no_grad():
            for batch in batches:
                quantized(batch)

    sim.compute_encodings(run, None)
    return PeerResult(
        sim.model.eval(),
        layer_sizes(model, request.weight_bits),
        notes=notes,
        protocol={"residual_adds": "quantized"},
    )


def _input_at_eight_bits(model: torch.nn.Module) -> None:
    """Widen the quantizers of the network's own input."""
    for module in model.modules():
        for quantizer in getattr(module, "input_quantizers", None) or []:
            if quantizer is not None and hasattr(quantizer, "bitwidth"):
                quantizer.bitwidth = 8
                return
