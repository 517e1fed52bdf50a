"""The NNCF part of the benchmark of converted models: PWLQ through NNCF, run by OpenVINO."""

from __future__ import annotations

from typing import Any

import nncf
import openvino
import torch
from torch import Tensor, nn

import zaq_nncf
from benchmarks.hosts.accuracy_tables import NNCF_BIAS, ZERO_SHOT, Case
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.report import Audit
from zaq_plugin.zero_shot import ZeroShotConfig, zero_shot_finetune

PRESET = "default"
"""Of zero-shot fine-tuning."""


class OnOpenVINO(nn.Module):
    """A stripped model on OpenVINO's CPU kernels.

    Args:
        stripped: From `zaq_nncf.strip` or ``nncf.strip``.
        example: A batch of the size that the model will run on.
    """

    def __init__(self, stripped: nn.Module, example: Tensor) -> None:
        super().__init__()
        model = openvino.convert_model(stripped, example_input=example)
        hints = {"INFERENCE_PRECISION_HINT": "f32"}  # else newer processors compute in bfloat16
        self.compiled: Any = openvino.compile_model(model, "CPU", hints)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, height, width) to (n, classes)."""
        return torch.from_numpy(self.compiled(x.numpy())[0].copy())

    def int8_kernels(self) -> int:
        """Convolutions and matrix products that OpenVINO runs in integers."""
        count = 0
        for node in self.compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            kind, precision = (
                str(info[key].astype(str)) if key in info else ""
                for key in ("layerType", "runtimePrecision")
            )
            count += kind in ("Convolution", "FullyConnected", "MatMul") and precision in (
                "u8",
                "i8",
            )
        return count


def quantized(
    model: nn.Module,
    case: Case,
    calibration: list[Tensor],
    overrides: dict[str, QuantSpec],
) -> tuple[nn.Module, Audit]:
    """The model quantized and stripped, and its audit."""
    count = sum(map(len, calibration))
    if case.spec is None:
        dataset = nncf.Dataset(_WithBatchSize(calibration))
        plain = nncf.quantize(model, dataset, subset_size=count)
        stripped = zaq_nncf.strip(plain)
        return stripped, zaq_nncf.audit(stripped)
    shape = (3, calibration[0].shape[2], calibration[0].shape[3])
    student = zaq_nncf.quantize(
        model,
        None if case.data_free else calibration,
        case.spec,
        activations=case.activation_bits,
        overrides=overrides,
        bias_correction="nncf" if case.method.endswith(NNCF_BIAS) else "activations",
        subset_size=count,
        image_shape=shape,
    )
    if ZERO_SHOT in case.method:
        config = ZeroShotConfig.preset(PRESET, seed=case.seed)
        zero_shot_finetune(student, config, image_shape=shape, float_model=model)
    return zaq_nncf.strip(student), zaq_nncf.audit(student)


class _WithBatchSize(list[Any]):
    """Batches that tell NNCF their size, as a DataLoader does."""

    def __init__(self, batches: list[Tensor]) -> None:
        super().__init__(batches)
        self.batch_size = len(batches[0])
