"""QConfigs and qconfig mappings for the stock FX functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import translate
from typing import Any

import torch
from torch import nn
from torch.ao.quantization import (
    QConfig,
    QConfigMapping,
    get_default_qat_qconfig_mapping,
)

from zaq_fx._compat import note_host
from zaq_fx.surgery import made_of
from zaq_plugin.fake_quantize import (
    ActivationFakeQuantize,
    PWLQActivationFakeQuantize,
    PWLQPerChannelFakeQuantize,
)
from zaq_plugin.layers import LAYERS
from zaq_plugin.observers import PWLQPerChannelObserver, TopKMedianObserver
from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.pwlq.base import is_simulated
from zaq_plugin.student.assign import (
    Choice,
    Override,
    Overrides,
    check_value,
    classes_at,
    is_pattern,
    label,
    module_classes,
)

Activations = int | PWLQSpec

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
        activations: Bits of the uniform per-tensor grid, 2 to 8; or a `PWLQSpec` for simulated
            PWLQ activations, which cannot be converted. Weights with which kernels of CPUs without
            VNNI do not saturate are the spec's affair, see its ``overflow``.
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
    if not isinstance(spec, QuantSpec):
        raise TypeError(f"spec must be a format such as a PWLQSpec; got {type(spec).__name__}.")
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
    if is_simulated(activations):
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
        overrides: What differs, by layer name, name of a module around it, pattern (``"*.conv1"``),
            module class, or function. A value is a weight format, a pair (weight format,
            activations), or None to leave the layer float. The activations are those that the
            layer makes: the host's grids belong to outputs. See `zaq_plugin.student.assign` for
            which override wins; functions are the host's own business.
        model: The model, in which every override is resolved and written down by name. Without it,
            names (of layers and modules around) and patterns are the host's to resolve: the nearest
            name wins, then the most specific pattern; and there are no overrides by module class,
            because the host drops or refuses them where the layer is fused with a ReLU.

    Returns:
        A mapping that can be changed further with its own ``set_...`` methods.

    Raises:
        ValueError: an override that nothing in the model matches, or a class without a model.
        TypeError: an override of another kind.
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
    functions, differing = _split(overrides, activations)
    configs = _QConfigs(spec, activations, options, mapping)
    for function, choice in functions.items():
        mapping.set_object_type(function, configs.of(choice, per_tensor=function in _TRANSPOSED))
    if model is None:
        _by_the_host(mapping, differing, configs)
    else:
        _by_name(mapping, differing, configs, model)
    return mapping


def _split(
    overrides: Mapping[Any, Override] | None, activations: Activations
) -> tuple[dict[Any, Choice], Overrides]:
    """Overrides of functions, which only the host knows, and those of modules."""
    if not isinstance(overrides, Mapping):
        return {}, Overrides(overrides, activations)
    functions = {k: v for k, v in overrides.items() if callable(k) and not isinstance(k, type)}
    modules = {k: v for k, v in overrides.items() if k not in functions}
    checked = {
        function: check_value(value, activations, f"overrides[{label(function)}]", function)
        for function, value in functions.items()
    }
    return checked, Overrides(modules, activations)


class _QConfigs:
    """The QConfigs of overrides, each made once.

    Args:
        spec, activations, options: See `pwlq_qconfig`.
        mapping: Knows what the host wants of norms.
    """

    def __init__(
        self,
        spec: QuantSpec | None,
        activations: Activations,
        options: dict[str, Any],
        mapping: QConfigMapping,
    ) -> None:
        self.spec, self.activations, self.options = spec, activations, options
        self.mapping = mapping
        self._made: dict[Any, QConfig] = {}

    def of(
        self, choice: Choice, module: nn.Module | None = None, *, per_tensor: bool = False
    ) -> QConfig | None:
        """The QConfig of an override, as a module needs it; None: float.

        Raises:
            TypeError, ValueError: the host has no such activations.
        """
        if choice.weights is None:
            return None
        per_tensor = per_tensor or isinstance(module, _TRANSPOSED[:3])
        norm = next((kind for kind in _NORMS[:1] if isinstance(module, kind)), None)
        key = (id(choice), per_tensor, norm)
        if key not in self._made:
            axis = {"ch_axis": None} if per_tensor else {}
            try:
                activations: Any = choice.activations  # which it checks
                usual = pwlq_qconfig(choice.weights, activations, **{**self.options, **axis})
            except (TypeError, ValueError) as error:
                raise type(error)(f"overrides[{label(choice.key)}]: {error}") from error
            if norm is not None:
                stock: Any = self.mapping.object_type_qconfigs[norm]
                usual = QConfig(activation=usual.activation, weight=stock.weight)
            self._made[key] = usual
        return self._made[key]


def _by_name(
    mapping: QConfigMapping, differing: Overrides, configs: _QConfigs, model: nn.Module
) -> None:
    """Write down, for every module by its name, the override that decides on it.

    Raises:
        ValueError: an override that no module matches.
    """
    made = made_of(model)
    classes, copies = {**module_classes(model), **made.classes}, made.copies
    modules = {n: m for n, m in model.named_modules(remove_duplicate=False) if n}
    own_classes = {name: classes_at(copies.get(name, name), classes) for name in modules}
    layers = {n: own_classes[n] for n, m in modules.items() if isinstance(m, LAYERS)}
    differing.require_used(layers, {n: c for n, c in own_classes.items() if n not in layers})
    for name, module in modules.items():
        aliases = (copies[name],) if name in copies else ()
        choice = differing.find(name, own_classes[name], aliases)
        if choice is not None:
            mapping.set_module_name(name, configs.of(choice, module))


def _by_the_host(mapping: QConfigMapping, differing: Overrides, configs: _QConfigs) -> None:
    """Without the model: names as names, patterns as patterns, the most specific one first.

    Raises:
        ValueError: an override by module type.
    """
    for key, choice in differing.choices.items():
        if not isinstance(key, str):
            raise ValueError(
                f"overrides[{label(key)}]: overrides by module type need model=, so that layers "
                "fused with a ReLU are reached, too."
            )
        if is_pattern(key):  # of a layer, or of a module around it
            pattern = f"{translate(key)}|{translate(key + '.*')}"
            mapping.set_module_name_regex(pattern, configs.of(choice))
        else:
            mapping.set_module_name(key, configs.of(choice))
