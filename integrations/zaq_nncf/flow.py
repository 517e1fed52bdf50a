"""`quantize`: ``nncf.quantize`` with PWLQ weights, with or without data."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import nncf
import torch
from nncf.quantization.advanced_parameters import OverflowFix, QuantizationParameters
from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet
from torch import Tensor, nn

from zaq_nncf import registration
from zaq_nncf._compat import hooks_of
from zaq_nncf.activations import called_later, give_own_grids, narrow_activations
from zaq_nncf.audit import NOTES, audit
from zaq_nncf.calibration import as_dataset, first_images
from zaq_nncf.placement import Placement
from zaq_nncf.preparation import baked_layers, prepare_model
from zaq_nncf.settings import Override, Settings, check_bits
from zaq_nncf.student import note_parts
from zaq_nncf.weight_quantizer import NativeWeight, PWLQWeightQuantizer
from zaq_plugin.layers import LAYERS
from zaq_plugin.ptq import correct_bias
from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.strategies.compose import compose
from zaq_plugin.strategies.prepared import Method, quantize_prepared
from zaq_plugin.student.assign import Classes, module_classes
from zaq_plugin.student.batches import Arguments, as_call, taking
from zaq_plugin.student.hand_over import keep_inputs
from zaq_plugin.zero_shot import ImageFormat, ZeroShotConfig, ZeroShotLoader

CORRECTION_IMAGES = 128
"""Images that correct biases."""


def quantize(
    model: nn.Module,
    calibration: nncf.Dataset | Iterable[Any] | ZeroShotLoader | None = None,
    spec: QuantSpec | None = None,
    *,
    activations: int = 8,
    overrides: Mapping[Any, Override] | None = None,
    bias_correction: str | None = "activations",
    learnable: bool = False,
    observer: Callable[..., Any] | None = None,
    image_shape: ImageFormat | tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    config: ZeroShotConfig | None = None,
    method: Method | None = None,
    method_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """``nncf.quantize`` with PWLQ weights; the result trains, strips and exports as NNCF's does.

    Lifecycle: BatchNorm is folded (`prepare_model`); NNCF decides where quantizers go and measures
    activation ranges; activations are narrowed if fewer than 8 bits are asked for; biases are
    corrected for the PWLQ weights.

    Args:
        model: Float, any mode; it is not touched.
        calibration: What sets the ranges: an ``nncf.Dataset``; any iterable of batches (tensors,
            ``(images, labels)`` pairs as from a DataLoader, or keyword mappings; one that never
            ends, too); a `ZeroShotLoader`; or None, and images are made from the model, as many
            as `zaq_plugin.image_counts` says.
        spec: The weights' format; ``PWLQSpec()`` (4 MAC bits, 5 stored) if None.
        activations: Width of the inputs of convolutions and matrix products, 2 to 8 bits. The
            model's input, and what is added or pooled, keeps 8; a tensor that is both has two
            grids.
        overrides: What differs, by layer name, name of a module around it, pattern (``*.conv1``)
            or module class: a weight format, or None for a layer that is left to NNCF's own int8
            (to leave it float, name it in ``ignored_scope``). See `zaq_plugin.student.assign` for
            which one wins.
        bias_correction: ``activations`` takes the mean error on the calibration images out of each
            bias; ``nncf`` is NNCF's fast bias correction, on channel means, as plain
            ``nncf.quantize`` does it; None leaves biases alone.
        learnable: Train the activations' steps, too.
        observer: Range observer of zaq_plugin for activations of fewer than 8 bits; the 99.9th
            percentile by default. At 8 bits NNCF measures the ranges.
        image_shape, mean, std: (channels, height, width) and normalisation of images made from the
            model, or an `ImageFormat` in place of all three; a timm model says its own.
        config: Seed and settings of image making.
        method: In place of bias correction alone, a published method on the PWLQ weights and the
            images that calibrate: ``pwlq+gptq``, ``adaround``, ``brecq``, ``zaq``, ...
        method_options: Of `zaq_plugin.strategies.quantize_prepared`: ``effort``, ``seed``, ...
        **options: Of ``nncf.quantize``: ``preset``, ``target_device``, ``subset_size``,
            ``model_type``, ``ignored_scope``, ``advanced_parameters`` ... NNCF's overflow fix is
            switched off (PWLQ's levels use the whole int8 grid), and activations have one grid per
            tensor, where NNCF would give depthwise convolutions one per channel, unless
            ``activations_quantization_params`` says otherwise. Activation ranges are the smallest
            and the largest value seen (NNCF's ``MINMAX``), unless
            ``activations_range_estimator_params`` says otherwise: NNCF's default is the mean of
            each sample's extremes, which clips where a sample is small, such as a vector.

    Returns:
        The model wrapped by NNCF, in evaluation mode; `audit` says what became of each layer.

    Raises:
        ValueError: nothing was quantized, an override matches no layer, there is no calibration
            data and no known image shape, weights that are not finite, or an overflow fix.
        TypeError: a format, calibration or model of an unknown kind.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"quantize expects an nn.Module, got {type(model).__name__}.")
    model = unwrapped(model)
    settings = Settings(spec, overrides, learnable, _classes(model))
    bits = check_bits(activations)
    if bias_correction not in ("activations", "nncf", None):
        raise ValueError(
            f"bias_correction must be 'activations', 'nncf' or None; got {bias_correction!r}."
        )
    by_nncf = bias_correction == "nncf"
    options["advanced_parameters"] = _advanced(options.get("advanced_parameters"), by_nncf)
    subset_size = int(options.get("subset_size", 300))
    dataset, example = as_dataset(
        calibration,
        model,
        subset_size,
        image_shape=image_shape,
        mean=mean,
        std=std,
        config=config,
        trains=method is not None and compose(method).trains,
    )
    if not isinstance(calibration, nncf.Dataset):  # it holds so many images; NNCF counts batches
        subset_size = options["subset_size"] = dataset.get_length()
    prepared = prepare_model(model, example)
    before = {name: value.detach().clone() for name, value in prepared.named_parameters()}
    call = as_call(Arguments(example) if isinstance(example, tuple) else example)
    with registration.in_this_thread(settings), taking(model, call):
        quantized: nn.Module = nncf.quantize(prepared, dataset, **options)
    placed = _placed(quantized)
    placement = Placement(quantized.eval(), example)
    if bits < 8 and give_own_grids(quantized, placement.torn()):
        placement = Placement(quantized, example)
    note_parts(quantized, example)
    readers = placement.readers()
    samples = itertools.islice(dataset.get_inference_data(), subset_size)
    quantized.__dict__[NOTES] = {
        "ignored": str(options.get("ignored_scope") or ""),
        "called": placement.weights(),
        "computed": placement.computed(),
        "readers": readers,
        "later": called_later(prepared, readers, samples),
        "baked": baked_layers(prepared),
        "unread": placement.unread(),
    }
    _require_any(quantized, placed, settings)
    bare, sources = placement.read_bare(), placement.sources()
    for _, quantizer in hooks_of(quantized).named_hooks():
        if isinstance(quantizer, PWLQWeightQuantizer | NativeWeight):
            quantizer.read_elsewhere = quantizer.weight in bare
    for quantizer in placed:
        quantizer.source = sources.get(quantizer.weight)
    if bits < 8:
        batches = itertools.islice(dataset.get_inference_data(), subset_size)
        narrow_activations(quantized, placement.multiplied(), batches, bits, observer)
    if method is not None:
        samples = itertools.islice(dataset.get_inference_data(), subset_size)
        kinds = {"image_shape": image_shape, "mean": mean, "std": std, **(method_options or {})}
        quantize_prepared(quantized, list(samples), method, **kinds)
    elif bias_correction == "activations" and placed:
        samples = itertools.islice(dataset.get_inference_data(), subset_size)
        correct_bias(quantized, first_images(samples, CORRECTION_IMAGES))
    elif by_nncf:
        _remember_shifts(quantized, placement, before)
    with suppress(TypeError):  # NNCF takes batches of more kinds
        keep_inputs(quantized, as_call(first_images([example], CORRECTION_IMAGES)[0]))
    return quantized


def _classes(model: object) -> dict[str, Classes]:
    """The classes of the model's modules, as overrides see them, with and without a root."""
    if not isinstance(model, nn.Module):
        return {}  # `prepare_model` refuses it
    classes = module_classes(model)
    rooted = {f"model.{name}" if name else "model": around for name, around in classes.items()}
    return {**rooted, **classes}


def _advanced(parameters: Any, bias_correction: bool) -> Any:
    """NNCF's advanced parameters for snapped weights; a copy."""
    chosen = (
        copy.deepcopy(parameters)
        if parameters is not None
        else nncf.AdvancedQuantizationParameters()
    )
    if chosen.overflow_fix not in (None, OverflowFix.DISABLE):
        raise ValueError(
            f"advanced_parameters: overflow_fix={chosen.overflow_fix} halves the int8 range that "
            "PWLQ's levels need. Leave it out or set nncf.OverflowFix.DISABLE: levels with "
            "overflow='pairs', the default, do not saturate on processors without VNNI."
        )
    chosen.overflow_fix = OverflowFix.DISABLE
    chosen.disable_bias_correction = chosen.disable_bias_correction or not bias_correction
    if chosen.activations_quantization_params is None:
        chosen.activations_quantization_params = QuantizationParameters(per_channel=False)
    if chosen.activations_range_estimator_params == RangeEstimatorParameters():
        # By default NNCF takes the mean of every sample's extremes: of small samples that clips
        # much of what is largest.
        whole = copy.deepcopy(RangeEstimatorParametersSet.MINMAX)
        chosen.activations_range_estimator_params = whole
    return chosen


def _placed(model: nn.Module) -> list[PWLQWeightQuantizer]:
    return [m for _, m in hooks_of(model).named_hooks() if isinstance(m, PWLQWeightQuantizer)]


def _require_any(model: nn.Module, placed: list[PWLQWeightQuantizer], settings: Settings) -> None:
    records = audit(model)  # an error if nothing was quantized
    settings.require_used([record.name for record in records])
    if not placed and settings.overrides:
        return
    if not placed:
        layers = sum(isinstance(m, LAYERS) for m in model.modules())
        raise ValueError(
            f"no weight got PWLQ levels: NNCF placed none of its quantizers on the {layers} "
            "convolutions and linear layers of the model. Look at ignored_scope and target_device."
        )


@torch.no_grad()
def _remember_shifts(model: nn.Module, placement: Placement, before: Mapping[str, Tensor]) -> None:
    """What NNCF took out of each bias, kept with the weight's quantizer for the teacher."""
    storage, done = hooks_of(model), set()
    for hook, name in placement.biases().items():
        quantizer: Any = storage.get_submodule(hook)
        if name in done or not isinstance(quantizer, PWLQWeightQuantizer):
            continue
        done.add(name)
        now = model.get_parameter(name)
        shift = before[name].to(now.device) - now
        if bool(shift.any()):
            quantizer.grid.bias_shift = shift.float()
