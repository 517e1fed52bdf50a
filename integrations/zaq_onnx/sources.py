"""Any quantized model as one exported program of quantize and dequantize operators.

Models are recognised by what they are made of; no host is imported. Fake-quantizers of simulated
models (``zaq_plugin.ptq.simulate``) become static grids.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from zaq_onnx._compat import QUANTIZED_LIBRARY
from zaq_onnx.grids import ActivationGrid, IntegerWeight
from zaq_onnx.lowered_fx import from_fx, is_converted_fx
from zaq_plugin._host_module import HostModule
from zaq_plugin.fake_quantize import ActivationFakeQuantize, PWLQActivationFakeQuantize
from zaq_plugin.ptq import quantized_tensors
from zaq_plugin.pwlq import PWLQTensor
from zaq_plugin.student.batches import dense, fresh, taking
from zaq_plugin.student.module_student import parametrized_layer

# ---- Simulated models ----------------------------------------------------------------------------


def is_simulated(model: nn.Module) -> bool:
    """Whether some layer of a model has a weight that a parametrization fake-quantizes."""
    return any(parametrized_layer(n, m) is not None for n, m in model.named_modules())


def from_simulated(model: nn.Module) -> nn.Module:
    """A copy of a simulated model with integer weights and static activation grids.

    Raises:
        ValueError: an activation grid that no int8 kernel computes with, or that has seen no
            data; levels that are no int8.
    """
    tensors = quantized_tensors(model)
    integer_model = copy.deepcopy(model).eval()
    for attribute in ("zaq_plan", "zaq_audit"):
        integer_model.__dict__.pop(attribute, None)
    tied: dict[int, list[nn.Parameter]] = {}
    for name, tensor in tensors.items():
        layer = integer_model.get_submodule(name)
        parametrized: Any = layer.parametrizations
        integers = _one_of(
            tied.setdefault(id(parametrized.weight.original), []), _int8(name, tensor)
        )
        weight = IntegerWeight(tensor.scale, 0 if tensor.axis is None else tensor.axis)
        # Not removed and registered anew: deep copies share the class that holds the property.
        parametrized["weight"] = parametrize.ParametrizationList([weight], integers, unsafe=True)
    for name, module in list(integer_model.named_modules()):
        if isinstance(module, ActivationFakeQuantize | PWLQActivationFakeQuantize):
            integer_model.set_submodule(name, static_grid(name, module))
    return integer_model


def _one_of(parameters: list[nn.Parameter], integers: torch.Tensor) -> nn.Parameter:
    """The parameter with these integers: tied layers share one, unless their axes differ."""
    for parameter in parameters:
        if torch.equal(parameter, integers):
            return parameter
    parameters.append(nn.Parameter(integers, requires_grad=False))
    return parameters[-1]


def _int8(name: str, tensor: PWLQTensor) -> torch.Tensor:
    if tensor.codebook.is_floating_point():
        raise ValueError(
            f"layer {name!r}: {tensor.spec.label} has float levels, which no int8 kernel "
            "computes with. Use grid='int8' (up to 6 MAC bits)."
        )
    integers = tensor.integer_weight()
    if int(integers.abs().max()) > 127:
        raise ValueError(
            f"layer {name!r}: {tensor.spec.label} has integers up to {int(integers.abs().max())}, "
            "beyond int8. Use a symmetric 8-bit format (of a strategy: Request(..., int8=True)), "
            "or 7 bits and fewer."
        )
    return integers.to(torch.int8)


def static_grid(name: str, module: Any) -> nn.Module:
    """The grid of a calibrated activation fake-quantizer; Identity if it is switched off.

    Raises:
        ValueError: PWLQ activations, which are simulated only, or one without data.
    """
    if isinstance(module, PWLQActivationFakeQuantize):
        raise ValueError(
            f"{name}: PWLQ activations ({module.format.label}) are simulated: no int8 kernel "
            "computes with them. Use a number of bits for activations."
        )
    if not module.switches()[1]:
        raise ValueError(
            f"{name}: the activation has no range yet. Run zaq_plugin.ptq.calibrate(student, "
            "batches) before the export."
        )
    scale, zero_point = module.calculate_qparams()
    return ActivationGrid(
        float(scale), int(zero_point), int(module.quant_min), int(module.quant_max)
    )


# ---- All of them ---------------------------------------------------------------------------------

assert QUANTIZED_LIBRARY is not None

_ops = torch.ops.quantized_decomposed
_aten = torch.ops.aten
_PER_TENSOR = (
    torch.fake_quantize_per_tensor_affine,
    _aten.fake_quantize_per_tensor_affine.default,
    _aten.fake_quantize_per_tensor_affine.tensor_qparams,
)
_PER_CHANNEL = (
    torch.fake_quantize_per_channel_affine,
    _aten.fake_quantize_per_channel_affine.default,
)
_PAIRS = {
    False: (_ops.quantize_per_tensor.default, _ops.dequantize_per_tensor.default),
    True: (_ops.quantize_per_tensor.tensor, _ops.dequantize_per_tensor.tensor),
}
"""Operators by whether a grid's numbers are tensors."""
QUANTIZE = (
    _ops.quantize_per_tensor.default,
    _ops.quantize_per_tensor.tensor,
    _ops.quantize_per_channel.default,
)


def exportable(model: nn.Module) -> tuple[nn.Module, str]:
    """A copy of a quantized model that ``torch.export`` takes, and the word for what it was.

    Raises:
        TypeError: the model is no module.
        ValueError: it is prepared but not converted, or holds what cannot be exported.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"export: expected a quantized nn.Module; got {type(model).__name__}.")
    if is_simulated(model):
        return from_simulated(model), "simulated"
    if is_converted_fx(model):
        assert isinstance(model, fx.GraphModule)
        return from_fx(model), "FX-converted"
    watchers = [name for name, m in model.named_modules() if isinstance(m, HostModule)]
    if watchers:
        raise ValueError(
            f"the model still holds observers or fake-quantizers ({watchers[0]!r} and "
            f"{len(watchers) - 1} more): it is prepared, but not converted. Call convert_fx, "
            "convert_pt2e or zaq_nncf.strip first."
        )
    targets = [n.target for m in model.modules() if isinstance(m, fx.GraphModule) for n in _all(m)]
    if any(str(t).startswith("zaq.") for t in targets):
        raise ValueError(
            "the model's weights are packed for torch.export; int8 is wanted here. Call "
            "zaq_pt2e.unpack(model) first: zaq_onnx packs the file by itself."
        )
    if any(t in QUANTIZE for t in targets):
        return model, "PT2E-converted"
    return model, "stripped"


def _all(model: fx.GraphModule) -> list[fx.Node]:
    return list(model.graph.nodes)


def _try_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Say whether the inputs are what export failed by: a plain run tells it more plainly.

    Raises:
        ValueError: the model does not take them.
    """
    call = fresh((inputs, {}))
    with suppress(RuntimeError, AssertionError, TypeError, IndexError), taking(model, call):
        model(*call[0])


def program_of(model: nn.Module, inputs: tuple[Any, ...], dynamic_shapes: Any) -> ExportedProgram:
    """Export an `exportable` model; fake-quantize operators become quantize and dequantize.

    Raises:
        ValueError: ``torch.export`` cannot take the model; nothing in it is quantized.
    """
    with warnings.catch_warnings(), torch.no_grad(), SpelledOut():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                _contiguous(model), dense(inputs), dynamic_shapes=dynamic_shapes
            )
        except Exception as error:
            _try_inputs(model, inputs)
            raise ValueError(
                f"torch.export cannot take this {type(model).__name__}: {error}"
            ) from error
    if not any(node.target in QUANTIZE for node in program.graph.nodes):
        raise ValueError(
            "nothing in this model is quantized: it has no quantize operator. Expected a model "
            "from convert_fx, convert_pt2e, zaq_nncf.strip or zaq_plugin.ptq.simulate."
        )
    return program


def _contiguous(model: nn.Module) -> nn.Module:
    """The model, or a copy whose tensors all lie in the order of their axes; see `dense`."""
    if all(x.is_contiguous() for x in (*model.parameters(), *model.buffers())):
        return model
    copied = copy.deepcopy(model)
    for x in (*copied.parameters(), *copied.buffers()):
        x.data = x.data.contiguous()
    return copied


class SpelledOut(TorchFunctionMode):
    """While exporting: fake-quantize operators become quantize and dequantize.

    ``torch.export`` itself cannot take fake-quantize operators with a dynamic batch, and the ONNX
    exporter not all of their ranges. Narrow grids are clamped before they are quantized.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator."""
        if func in _PER_TENSOR:
            return _per_tensor(*args, **(kwargs or {}))
        if func in _PER_CHANNEL:
            return _per_channel(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _per_tensor(
    x: Tensor, scale: float | Tensor, zero_point: int | Tensor, quant_min: int, quant_max: int
) -> Tensor:
    low, high, dtype = _integers(quant_min, quant_max)
    if (quant_min, quant_max) not in ((low, high), (-127, 127)):
        bounds = [(q - zero_point) * scale for q in (quant_min, quant_max)]
        x = torch.clamp(x, bounds[0], bounds[1])  # type: ignore[arg-type]
    grid = (scale, zero_point, low, high, dtype)
    quantize, dequantize = _PAIRS[isinstance(scale, Tensor)]
    values: Tensor = dequantize(quantize(x, *grid), *grid)
    return values


def _per_channel(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    *_, dtype = _integers(quant_min, quant_max)
    grid = (scale, zero_point, axis, quant_min, quant_max, dtype)
    codes = _ops.quantize_per_channel.default(x, *grid)
    values: Tensor = _ops.dequantize_per_channel.default(codes, *grid)
    return values


def _integers(low: int, high: int) -> tuple[int, int, torch.dtype]:
    return (-128, 127, torch.int8) if low < 0 else (0, 255, torch.uint8)


def batch_shapes(inputs: tuple[Any, ...], dynamic_batch: bool) -> Any:
    """``dynamic_shapes`` for inputs whose first dimension is the batch."""
    if not dynamic_batch:
        return None
    return tuple(_batched(x) for x in inputs)


def _batched(value: Any) -> Any:
    """A shape whose first dimension may vary, for every tensor in lists and dictionaries."""
    if isinstance(value, Tensor):
        return {0: torch.export.Dim.AUTO} if value.dim() else None
    if isinstance(value, dict):
        return {key: _batched(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_batched(v) for v in value]
    return None
