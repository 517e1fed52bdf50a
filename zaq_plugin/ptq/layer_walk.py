"""Layer after layer in order of execution, each on the student's own stream of inputs.

What is done to a layer when its inputs are known is seen by all layers behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.calibrate import Batch, as_call, evaluating
from zaq_plugin.ptq.student import quantized_layers

MEMORY = 1 << 30


class _Stop(Exception):
    """Ends a forward pass early."""


class LayerWork(Protocol):
    """What is done to one layer."""

    def add(self, x: Tensor) -> None:
        """Take a batch of the layer's inputs, as it multiplies them, into account."""

    def finish(self) -> None:
        """Change the layer; all batches have been seen."""


Begin = Callable[[str, nn.Module, int], LayerWork]
"""A layer's name, itself, and how many samples it is going to see in all batches."""


def walk_layers(
    student: nn.Module,
    batches: Iterable[Any],
    begin: Begin,
    *,
    what: str,
    prepare: Callable[[nn.Module], None] | None = None,
    memory: int = MEMORY,
) -> list[str]:
    """Do something to every quantized layer, in order of execution.

    Args:
        student: What `zaq_plugin.ptq.simulate` returned; observers are off meanwhile.
        batches: As for `zaq_plugin.ptq.calibrate`; all are kept in memory.
        begin: Starts the work on a layer; see `Begin`.
        what: Who asks, for errors.
        prepare: Done to every layer before the first one runs.
        memory: Bytes that activations may take. If all batches fit, one forward pass does all
            layers; otherwise each layer takes a pass of its own, batch by batch, up to that layer.

    Returns:
        The names of the layers that the batches reached, in order of execution.

    Raises:
        ValueError: If there are no batches, or no quantized layer.
    """
    layers = dict(quantized_layers(student))
    if not layers:
        raise ValueError(
            f"{type(student).__name__} has no fake-quantized weights; pass what simulate() returned"
        )
    calls = [as_call(batch) for batch in batches]
    if not calls:
        raise ValueError(f"{what} got no batches; give at least one batch of inputs")
    if prepare is not None:
        for layer in layers.values():
            prepare(layer)
    observing = _stop_observers(student)
    try:
        with evaluating(student):
            order, peak = _first_calls(student, layers, _one_sample(calls[0]))
            merged = _merge(calls)
            samples = _samples(merged[0]) if len(merged) == 1 else 0
            once = all(count == 1 for count in order.values())
            if once and samples and samples * peak <= memory:
                _in_one_pass(student, layers, merged[0], begin)
            else:
                _layer_by_layer(student, layers, order, calls, begin)
    finally:
        for module in observing:
            module.enable_observer()
    return list(order)


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


def _in_one_pass(
    student: nn.Module, layers: dict[str, nn.Module], call: Batch, begin: Begin
) -> None:
    """Every layer is done the moment before it runs on all samples at once."""

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            work = begin(name, layer, _samples(call))
            work.add(_argument(args, kwargs))
            work.finish()

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
    student: nn.Module,
    layers: dict[str, nn.Module],
    order: Counter[str],
    calls: Sequence[Batch],
    begin: Begin,
) -> None:
    """One pass over the batches for each layer, cut off behind the layer's last call."""
    samples = sum(_samples(call) for call in calls)
    for name, expected in order.items():
        work = begin(name, layers[name], samples)
        seen, reached = 0, False

        def hook(
            layer: nn.Module,
            args: Any,
            kwargs: Any,
            work: LayerWork = work,
            expected: int = expected,
        ) -> None:
            nonlocal seen, reached
            work.add(_argument(args, kwargs))
            seen, reached = seen + 1, True
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
        if reached:
            work.finish()
