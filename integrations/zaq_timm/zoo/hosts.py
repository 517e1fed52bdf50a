"""Each host's whole way from a float model to a converted one, behind one signature.

A new host is a function here and a line in `CONVERTERS`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.layers import channel_axis, is_depthwise
from zaq_plugin.ptq.plan import stored_size
from zaq_plugin.pwlq import QuantSpec, UniformSpec
from zaq_plugin.report import Audit
from zaq_plugin.zero_shot import FinetuneResult
from zaq_timm.zoo.errors import LeftOut, is_out_of_memory

Correct = Callable[..., object]
Finetune = Callable[[nn.Module, Correct | None], FinetuneResult]
"""Trains a student; told how its host corrects biases, None where that is done already."""
INT8 = UniformSpec(8)


@dataclass(frozen=True)
class Request:
    """What a host is asked for.

    Attributes:
        model: float, in evaluation mode; it is not touched.
        weights: grid of the weights.
        activations: bits of the layers' inputs.
        overrides: layer name to its own grid.
        calibration: (n, C, H, W) images for ranges and biases.
        batch: so many at a time.
        finetune: trains a student that was prepared for training; None calibrates only.
    """

    model: nn.Module
    weights: QuantSpec
    activations: int
    overrides: Mapping[str, QuantSpec]
    calibration: Tensor
    batch: int
    finetune: Finetune | None = None

    @property
    def example(self) -> Tensor:
        """Two images."""
        return self.calibration[:2].clone()

    @property
    def batches(self) -> list[Tensor]:
        """The calibration images, `batch` at a time."""
        return list(self.calibration.split(self.batch))

    def pairs(self) -> dict[Any, Any]:
        """The overrides with activations, as the hosts take them."""
        return {name: (spec, self.activations) for name, spec in self.overrides.items()}


@dataclass
class Converted:
    """What a host hands back.

    Attributes:
        model: called like the float one, with batches of any size.
        layers: what was quantized, and what was not and why.
        fixed_batch: the only batch size that it takes, where the host could not do better.
        finetuned: how training went.
        notes: what a reader should know.
        ranges: images that give 8-bit ranges, in an exported file, to what it leaves in float
            between layers, so that layers run on integer kernels; None exports it as it is.
    """

    model: nn.Module
    layers: Audit
    fixed_batch: int | None = None
    finetuned: FinetuneResult | None = None
    notes: list[str] = field(default_factory=list)
    ranges: Tensor | None = None


def on_pt2e(request: Request) -> Converted:
    """torch.export and torchao's PT2E.

    Raises:
        LeftOut: torch.export cannot follow the model, or it has nothing to quantize.
    """
    from torchao.quantization.pt2e.quantize_pt2e import (
        convert_pt2e,
        prepare_pt2e,
        prepare_qat_pt2e,
    )

    import zaq_pt2e
    from zaq_pt2e.rewrites import rewrite

    graph, fixed, notes = _export(request)
    notes += rewrite(graph)
    train = request.finetune is not None
    quantizer = zaq_pt2e.PWLQQuantizer(
        request.weights,
        request.activations,
        overrides=_existing(request.pairs(), _layer_names(graph)),
        qat=train,
        bias_correction=not train,
    )
    if request.finetune is None:
        prepared = prepare_pt2e(graph, quantizer)
        batches = request.batches
        if fixed:
            batches = [b for b in request.calibration.split(fixed) if len(b) == fixed]
        elif len(batches) > 1 and len(batches[-1]) != len(batches[0]):
            batches.pop()  # bias correction wants batches of one shape
        zaq_pt2e.calibrate(prepared, batches)
        result = None
    else:
        prepared = prepare_qat_pt2e(graph, quantizer)
        zaq_pt2e.set_training(prepared, False)
        result = request.finetune(prepared, zaq_pt2e.correct_bias)
    converted = convert_pt2e(prepared)
    return Converted(converted, zaq_pt2e.audit(converted), fixed, result, notes)


def _export(request: Request) -> tuple[Any, int | None, list[str]]:
    """The exported graph; the one batch size that it takes, if it takes one only; remarks."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        program = torch.export.export(request.model, (request.example,), dynamic_shapes=shapes)
        return program.module(), None, []
    except Exception as error:
        if is_out_of_memory(error):
            raise
        first = _short(error)
    size = min(request.batch, len(request.calibration))
    try:
        example = request.calibration[:size].clone()
        program = torch.export.export(request.model, (example,))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise LeftOut(f"torch.export cannot follow it: {_short(error)}") from error
    note = f"exported for batches of {size} only; any size failed: {first}"
    return program.module(), size, [note]


def _layer_names(graph: Any) -> set[str]:
    from zaq_pt2e.graph import layers

    return {layer.name for layer in layers(graph)}


def _existing(overrides: dict[Any, Any], names: set[str]) -> dict[Any, Any]:
    """Overrides of layers that the host sees; modules that never run have none."""
    return {name: value for name, value in overrides.items() if name in names}


def on_fx(request: Request) -> Converted:
    """torch.ao's FX graph mode.

    Raises:
        LeftOut: torch.fx cannot trace the model, or it has nothing to quantize.
    """
    import zaq_fx

    train = request.finetune is not None
    names = {name for name, _ in request.model.named_modules()}
    with warnings.catch_warnings():
        # That FX is on its way out is for those who choose it in their own code.
        warnings.simplefilter("ignore", zaq_fx.HostNote)
        warnings.simplefilter("ignore", DeprecationWarning)
        prepared = zaq_fx.prepare(
            request.model,
            (request.example,),
            request.weights,
            request.activations,
            qat=train,
            overrides=_existing(request.pairs(), names),
        )
        result = None
        if request.finetune is None:
            zaq_fx.calibrate(prepared, request.batches)
        else:
            result = request.finetune(prepared.eval(), zaq_fx.correct_bias)
        converted = zaq_fx.convert(prepared)
    return Converted(converted, zaq_fx.audit(converted), None, result)


def on_nncf(request: Request) -> Converted:
    """NNCF: ``nncf.quantize`` with PWLQ weights, stripped of what only training needs.

    Raises:
        LeftOut: NNCF cannot follow the model, or it has nothing to quantize.
    """
    import zaq_nncf

    names = {name for name, _ in request.model.named_modules()}
    quantized = zaq_nncf.quantize(
        request.model,
        request.batches,
        request.weights,
        activations=request.activations,
        overrides=_existing(dict(request.overrides), names),
    )
    result = None if request.finetune is None else request.finetune(quantized, None)
    layers = zaq_nncf.audit(quantized)
    return Converted(zaq_nncf.strip(quantized), layers, None, result)


CONVERTERS: dict[str, Callable[[Request], Converted]] = {
    "pt2e": on_pt2e,
    "fx": on_fx,
    "nncf": on_nncf,
}
"""Name to way; what ``host`` may say, but for ``auto``."""

AUTO = ("pt2e", "fx")
"""What ``auto`` tries, in order."""


def convert(host: str, request: Request) -> tuple[str, Converted]:
    """Converts a model with the host asked for, or the first one of `AUTO` that can.

    Returns:
        The host's name, and what it made; under `AUTO` its notes say why others could not.

    Raises:
        LeftOut: none can; the text says why for each.
    """
    names = AUTO if host == "auto" else (host,)
    reasons: list[str] = []
    for name in names:
        try:
            made = CONVERTERS[name](request)
        except ImportError as error:
            reasons.append(f"{name}: {_short(error)}")
            continue
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reasons.append(f"{name}: {_short(error)}")
            last = error
            continue
        made.notes = [f"{reason}" for reason in reasons] + made.notes
        return name, made
    raise LeftOut("; ".join(reasons)) from locals().get("last")


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return f"{type(error).__name__}: {text}"[:400]


def depthwise_overrides(model: nn.Module, spec: QuantSpec) -> dict[str, QuantSpec]:
    """int8 for depthwise layers whose narrow codes and levels take more room than 8 bits."""
    found: dict[str, QuantSpec] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not is_depthwise(module) or not isinstance(weight, Tensor) or weight.dim() < 3:
            continue
        numel, channels = weight.numel(), weight.shape[channel_axis(module)]
        if stored_size(numel, channels, spec) >= stored_size(numel, channels, INT8):
            found[name] = INT8
    return found
