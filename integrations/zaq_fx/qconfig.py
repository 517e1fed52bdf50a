"""QConfigs and qconfig mappings for the stock FX functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase, translate
from typing import Any

import torch
from torch import nn
from torch.ao.quantization import (
    QConfig,
    QConfigMapping,
    get_default_qat_qconfig_mapping,
)

from zaq_fx.notes import note_host
from zaq_plugin.fake_quantize import (
    ActivationFakeQuantize,
    PWLQActivationFakeQuantize,
    PWLQPerChannelFakeQuantize,
)
from zaq_plugin.observers import PWLQPerChannelObserver, TopKMedianObserver
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec

Activations = int | PWLQSpec
Override = QuantSpec | tuple[QuantSpec, Activations] | None

_TRANSPOSED = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    torch.nn.functional.conv_transpose1d,
    torch.nn.functional.conv_transpose2d,
    torch.nn.functional.conv_transpose3d,
)
_NORMS = (nn.LayerNorm, torch.nn.functional.layer_norm)


def pwlq_qconfig(
    spec: QuantSpec | None = None,
    activations: Activations = 8,
    *,
    qat: bool = False,
    observer: Callable[..., Any] = TopKMedianObserver,
    symmetric_activations: bool = False,
    learnable: bool = False,
    solve_every: int = 64,
    ch_axis: int | None = 0,
) -> QConfig:
    """A QConfig with PWLQ weights and uniform activations.

    Args:
        spec: The weights' format; ``PWLQSpec()`` (4 MAC bits, 5 stored) if None.
        activations: Bits of the uniform per-tensor grid, 2 to 8 (7 on CPUs without VNNI, whose
            kernels saturate at 8; `prepare` takes ``input_bits=7`` for the model's inputs); or a
            `PWLQSpec` for simulated PWLQ activations, which cannot be converted.
        qat: For training (prepare_qat_fx): quantizes from the start. For calibration (prepare_fx)
            fake-quantizers only observe, until `zaq_fx.calibrate` switches them on.
        observer: Range observer of the activations.
        symmetric_activations: Whether the activations' grid is symmetric around zero.
        learnable: With qat: train activation steps and weight edges, too.
        solve_every: With qat: how many training steps pass between searches for breakpoints while
            observers are enabled; see `PWLQPerChannelFakeQuantize`.
        ch_axis: Channels' axis of the weights; None for one grid per tensor.

    Raises:
        TypeError: activations is neither int nor PWLQSpec.
        ValueError: a width that does not exist, or a weight format without int8 levels.
    """
    note_host()
    spec = PWLQSpec() if spec is None else spec
    if not isinstance(spec, PWLQSpec | UniformSpec):
        raise TypeError(f"spec must be a PWLQSpec or a UniformSpec; got {type(spec).__name__}.")
    if learnable and not qat:
        raise ValueError("learnable=True trains, which needs qat=True and prepare_qat_fx.")
    weight: Any
    if qat:
        weight = PWLQPerChannelFakeQuantize.with_args(
            spec=spec,
            ch_axis=ch_axis,
            learnable=learnable,
            solve_every=solve_every,
            dtype=torch.qint8,
        )
    else:
        weight = PWLQPerChannelObserver.with_args(spec=spec, ch_axis=ch_axis, dtype=torch.qint8)
    return QConfig(
        activation=_activation(activations, qat, observer, symmetric_activations, learnable),
        weight=weight,
    )


def _activation(
    activations: Activations, qat: bool, observer: Callable[..., Any], symmetric: bool, learn: bool
) -> Any:
    if isinstance(activations, PWLQSpec):
        return PWLQActivationFakeQuantize.with_args(
            spec=activations, observer=observer, fake_quant=qat
        )
    if isinstance(activations, bool) or not isinstance(activations, int):
        raise TypeError(
            "activations must be a number of bits, 2 to 8, or a PWLQSpec (simulated); got "
            f"{activations!r}. torch.ao's convolutions have no weight-only kernels; zaq_pt2e has."
        )
    if not 2 <= activations <= 8:
        raise ValueError(f"activations must have 2 to 8 bits; got {activations}.")
    arguments = {"bits": activations, "symmetric": symmetric, "dtype": torch.quint8}
    return ActivationFakeQuantize.with_args(
        observer=observer, learnable=learn, fake_quant=qat, **arguments
    )


def pwlq_qconfig_mapping(
    spec: QuantSpec | None = None,
    activations: Activations = 8,
    *,
    overrides: Mapping[Any, Override] | None = None,
    model: nn.Module | None = None,
    **options: Any,
) -> QConfigMapping:
    """The mapping for prepare_fx: torch's default one with PWLQ weights throughout.

    Args:
        spec, activations, **options: See `pwlq_qconfig`.
        overrides: What differs, by module name (``"layer1.0.conv1"``, or a pattern such as
            ``"layer1.*"``), module type or function. A value is a weight format, a pair (weight
            format, activations), or None to leave the layer float. Names win over patterns,
            patterns over types.
        model: The model, needed for overrides by module type: they are written as names, because
            the host drops a type's entry, or refuses it, where the layer is fused with a ReLU.

    Returns:
        A mapping that can be changed further with its own ``set_...`` methods.

    Raises:
        ValueError: an override that no layer of the model matches, or a type without a model.
    """
    return _mapping(spec, activations, overrides, model, options)


def pwlq_qat_qconfig_mapping(
    spec: QuantSpec | None = None,
    activations: Activations = 8,
    *,
    overrides: Mapping[Any, Override] | None = None,
    model: nn.Module | None = None,
    **options: Any,
) -> QConfigMapping:
    """The mapping for prepare_qat_fx; arguments as in `pwlq_qconfig_mapping`."""
    options = {**options, "qat": True}
    return _mapping(spec, activations, overrides, model, options)


def _mapping(
    spec: QuantSpec | None,
    activations: Activations,
    overrides: Mapping[Any, Override] | None,
    model: nn.Module | None,
    options: dict[str, Any],
) -> QConfigMapping:
    usual = pwlq_qconfig(spec, activations, **options)
    # Its fake-quantizers of fixed grids (sigmoid, softmax) serve calibration, too.
    mapping = get_default_qat_qconfig_mapping("x86").set_global(usual)
    for kind in _TRANSPOSED:  # fbgemm's transposed convolutions know one scale per tensor
        mapping.set_object_type(kind, pwlq_qconfig(spec, activations, **options, ch_axis=None))
    for norm in _NORMS:
        stock: Any = mapping.object_type_qconfigs[norm]
        mapping.set_object_type(norm, QConfig(activation=usual.activation, weight=stock.weight))
    ranked = sorted((overrides or {}).items(), key=lambda item: _rank(item[0]))
    for key, value in ranked:
        if isinstance(key, str):
            _check_name(key, model)
        if isinstance(key, str) and not _is_pattern(key):
            per_tensor = model is not None and isinstance(model.get_submodule(key), _TRANSPOSED[:3])
            chosen = _override(key, value, spec, activations, options, per_tensor)
            mapping.set_module_name(key, chosen)
        elif isinstance(key, type) and issubclass(key, nn.Module):
            chosen = _override(key, value, spec, activations, options, key in _TRANSPOSED)
            for name in _names_of(key, model):
                mapping.set_module_name(name, chosen)
        elif isinstance(key, str):
            chosen = _override(key, value, spec, activations, options, False)
            # Written as names where possible, so that patterns win over types.
            names = [n for n, _ in model.named_modules() if fnmatchcase(n, key)] if model else []
            for name in names:
                mapping.set_module_name(name, chosen)
            mapping.set_module_name_regex(translate(key), chosen)
        else:
            chosen = _override(key, value, spec, activations, options, key in _TRANSPOSED)
            mapping.set_object_type(key, chosen)
    return mapping


def _is_pattern(key: str) -> bool:
    return any(c in key for c in "*?[")


def _rank(key: Any) -> int:
    """Later wins: types, then patterns, then names."""
    if not isinstance(key, str):
        return 0
    return 1 if _is_pattern(key) else 2


def _check_name(key: str, model: nn.Module | None) -> None:
    if model is None:
        return
    if not any(fnmatchcase(name, key) for name, _ in model.named_modules()):
        raise ValueError(
            f"overrides[{key!r}]: the model has no such module. Names are those of "
            "model.named_modules(); patterns use *, ? and [...]."
        )


def _names_of(kind: type[nn.Module], model: nn.Module | None) -> list[str]:
    if model is None:
        raise ValueError(
            f"overrides[{kind.__name__}]: overrides by module type need model=, so that layers "
            "fused with a ReLU are reached, too."
        )
    names = [name for name, module in model.named_modules() if type(module) is kind]
    if not names:
        raise ValueError(f"overrides[{kind.__name__}]: the model has no module of this type.")
    return names


def _override(
    key: Any,
    value: Override,
    spec: QuantSpec | None,
    activations: Activations,
    options: dict[str, Any],
    per_tensor: bool,
) -> QConfig | None:
    if value is None:
        return None
    if not isinstance(value, tuple):
        value = (value, activations)
    if len(value) != 2 or not isinstance(value[0], PWLQSpec | UniformSpec):
        raise TypeError(
            f"overrides[{key!r}] must be a weight format, a pair (weight format, activations), or "
            f"None; got {value!r}."
        )
    axis = {"ch_axis": None} if per_tensor else {}
    return pwlq_qconfig(value[0], value[1], **{**options, **axis})
