"""Bias correction from activations: the mean error of each output channel, taken out of the bias.

A quantized layer computes ``W^ x`` where the float one computes ``W x``; the mean of the
difference, ``E[(W^ - W) x]`` per output channel, is a constant that the bias can absorb (Nagel et
al., ICCV 2019, section 4.2). x is what the quantized model itself feeds the layer, with all layers
before it already corrected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.calibrate import Batch, as_call, evaluating
from zaq_plugin.ptq.fold_arithmetic import out_features, wide_dtype
from zaq_plugin.ptq.simulate import (
    SHIFT,
    float_weight,
    quantized_layers,
    weight_fake_quant,
)

MEMORY = 1 << 30


class _Stop(Exception):
    """Ends a forward pass early."""


class _MeanError:
    """Running mean of a layer's output error per channel, fed with the layer's inputs."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.total: Tensor | None = None
        self.images = 0

    def add(self, x: Tensor) -> None:
        """Take a batch of inputs into account, weighted by its number of samples."""
        error = mean_output_error(self.layer, x)
        samples = x.shape[0]
        self.total = error * samples if self.total is None else self.total + error * samples
        self.images += samples

    def mean(self) -> Tensor:
        """The mean so far, ``(channels,)``."""
        assert self.total is not None
        return self.total / self.images


def mean_output_error(layer: nn.Module, x: Tensor) -> Tensor:
    """``E[(W^ - W) x]`` per output channel, over samples and positions, in float64.

    The layer is linear in x, so that only the batch mean of x goes through it.

    Args:
        layer: A convolution or linear layer with a fake-quantized weight.
        x: A batch of the layer's inputs; ``(n, channels, *size)``, or ``(*, features)`` for a
            linear layer.

    Returns:
        ``(output channels,)``.
    """
    quantizer, original = weight_fake_quant(layer), float_weight(layer)
    assert quantizer is not None
    wide, weight_rank = wide_dtype(x), original.dim()
    if not isinstance(layer, nn.Linear) and x.dim() == weight_rank - 1:
        x = x.unsqueeze(0)  # a convolution's single sample without its batch axis
    axes = tuple(range(x.dim() - 1)) if isinstance(layer, nn.Linear) else (0,)
    mean_input = x.mean(axes, dtype=wide).unsqueeze(0)
    with torch.no_grad():
        error = quantizer(original).to(wide) - original.to(wide)
    kept, bias = original.data, layer._parameters.get("bias")
    enabled = bool(quantizer.fake_quant_enabled[0])
    try:
        quantizer.disable_fake_quant()
        original.data = error
        layer._parameters["bias"] = None
        with torch.no_grad():
            output: Tensor = layer.forward(mean_input)
    finally:
        original.data = kept
        layer._parameters["bias"] = bias
        quantizer.enable_fake_quant(enabled)
    if isinstance(layer, nn.Linear):
        return output.reshape(-1, output.shape[-1]).mean(0)
    return output.flatten(2).mean((0, 2)) if output.dim() > 2 else output.mean(0)


def correct_bias(
    student: nn.Module, batches: Iterable[Any], *, memory: int = MEMORY
) -> dict[str, Tensor]:
    """Take the mean output error ``E[(W^ - W) x]`` out of every quantized layer's bias, in place.

    Layer after layer in order of execution, on the student's own stream: inputs quantized, layers
    before already corrected. A layer without a bias gets one. Earlier corrections are taken back
    first, so that a second call with the same batches changes nothing. The result does not depend
    on labels; a few hundred images, real or generated, are plenty.

    Args:
        student: What `simulate` returned, calibrated if its activations are quantized.
        batches: As for `calibrate`; all are kept in memory.
        memory: Bytes that activations may take. If all batches fit, one forward pass does all
            layers; otherwise each layer takes a pass of its own, batch by batch, up to that layer.

    Returns:
        For each layer what was taken out of its bias, ``(output channels,)``.

    Raises:
        ValueError: If there are no batches, no quantized layer, or an activation is not finite.
    """
    layers = dict(quantized_layers(student))
    if not layers:
        raise ValueError(
            f"{type(student).__name__} has no fake-quantized weights; pass what simulate() returned"
        )
    calls = [as_call(batch) for batch in batches]
    if not calls:
        raise ValueError("correct_bias got no batches; give at least one batch of inputs")
    for layer in layers.values():
        take_back(layer)
    observing = _stop_observers(student)
    try:
        with evaluating(student):
            order, peak = _first_calls(student, layers, _one_sample(calls[0]))
            merged = _merge(calls)
            samples = _samples(merged[0]) if len(merged) == 1 else 0
            once = all(count == 1 for count in order.values())
            if once and samples and samples * peak <= memory:
                _in_one_pass(student, layers, merged[0])
            else:
                _layer_by_layer(student, layers, order, calls)
    finally:
        for module in observing:
            module.enable_observer()
    return {name: getattr(layers[name], SHIFT).clone() for name in order}


def take_back(layer: nn.Module) -> None:
    """Undo an earlier correction, and make sure that there is a bias of the layer's own."""
    weight, bias = float_weight(layer), layer.bias
    if not isinstance(bias, nn.Parameter):
        zeros = torch.zeros(out_features(layer), dtype=weight.dtype, device=weight.device)
        layer.bias = bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
    shift = getattr(layer, SHIFT, None)
    if not isinstance(shift, Tensor):
        layer.register_buffer(SHIFT, torch.zeros_like(bias, dtype=torch.float32))
        return
    with torch.no_grad():
        bias.add_(shift.to(bias.dtype))
        shift.zero_()


def take_out(name: str, layer: nn.Module, error: Tensor) -> None:
    """Take a mean error (channels,) out of a layer's bias, and remember it on the layer.

    Raises:
        ValueError: If the error is not finite.
    """
    if not bool(error.isfinite().all()):
        raise ValueError(
            f"layer {name!r}: the mean output error is not finite; check the batches for NaN or "
            "infinity"
        )
    bias = layer.bias
    assert isinstance(bias, nn.Parameter)  # take_back has seen to it
    with torch.no_grad():
        getattr(layer, SHIFT).copy_(error)
        bias.sub_(error.to(bias.dtype))


def _stop_observers(student: nn.Module) -> list[Any]:
    stopped: list[Any] = []
    for module in student.modules():
        enabled = getattr(module, "observer_enabled", None)
        if isinstance(enabled, Tensor) and bool(enabled[0]):
            module.disable_observer()  # type: ignore[operator]
            stopped.append(module)
    return stopped


def _one_sample(call: Batch) -> Batch:
    args, kwargs = call

    def cut(x: Any) -> Any:
        return x[:1] if isinstance(x, Tensor) and x.dim() else x

    return tuple(cut(x) for x in args), {k: cut(x) for k, x in kwargs.items()}


def _first_calls(
    student: nn.Module, layers: dict[str, nn.Module], call: Batch
) -> tuple[Counter[str], int]:
    """How often each layer is called, in order of the first call, and bytes per sample to hold."""
    count: Counter[str] = Counter()
    peak = 0

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            nonlocal peak
            count[name] += 1
            size = sum(
                x.numel() * x.element_size() for x in (*args, output) if isinstance(x, Tensor)
            )
            peak = max(peak, 2 * size)  # the shortcut around a block is alive, too

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        student(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()
    return count, peak


def _merge(calls: Sequence[Batch]) -> list[Batch]:
    """All batches as one, where they are single tensors of one sample shape."""
    tensors = [args[0] for args, kwargs in calls if len(args) == 1 and not kwargs]
    if len(tensors) < len(calls) or len({(x.shape[1:], x.dtype, x.device) for x in tensors}) > 1:
        return list(calls)
    return [((torch.cat(tensors),), {})]


def _samples(call: Batch) -> int:
    tensors = [x for x in (*call[0], *call[1].values()) if isinstance(x, Tensor)]
    return tensors[0].shape[0] if tensors else 0


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else kwargs["input"]
    return x


def _in_one_pass(student: nn.Module, layers: dict[str, nn.Module], call: Batch) -> None:
    """Every layer is corrected the moment before it runs on all samples at once."""

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            error = _MeanError(layer)
            error.add(_argument(args, kwargs))
            take_out(name, layer, error.mean())

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        student(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()


def _layer_by_layer(
    student: nn.Module, layers: dict[str, nn.Module], order: Counter[str], calls: Sequence[Batch]
) -> None:
    """One pass over the batches for each layer, cut off behind the layer's last call."""
    for name, expected in order.items():
        error = _MeanError(layers[name])
        seen = 0

        def hook(
            layer: nn.Module,
            args: Any,
            kwargs: Any,
            error: _MeanError = error,
            expected: int = expected,
        ) -> None:
            nonlocal seen
            error.add(_argument(args, kwargs))
            seen += 1
            if seen == expected:
                raise _Stop

        handle = layers[name].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            for args, kwargs in calls:
                seen = 0
                with suppress(_Stop):
                    student(*args, **kwargs)
        finally:
            handle.remove()
        if error.images:
            take_out(name, layers[name], error.mean())
