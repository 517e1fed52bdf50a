"""Layer after layer in order of execution, each on the student's own stream of inputs.

What is done to a layer when its inputs are known is seen by all layers behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from torch import Tensor, nn

from zaq_plugin.student.batches import Call, as_calls, fresh, inputs_of, merged, samples
from zaq_plugin.student.fake_quantizers import quantizing
from zaq_plugin.student.layer import QuantLayer
from zaq_plugin.student.view import Student

MEMORY = 1 << 30


class _Stop(Exception):
    """Ends a forward pass early."""


class LayerWork(Protocol):
    """What is done to one layer."""

    def add(self, x: Tensor) -> None:
        """Take a batch of the layer's inputs, as it multiplies them, into account."""

    def finish(self) -> None:
        """Change the layer; all batches have been seen."""


Begin = Callable[[QuantLayer, int], LayerWork]
"""A layer, and how many samples it is going to see in all batches."""


def walk_layers(
    student: Student,
    batches: Iterable[Any],
    begin: Begin,
    *,
    what: str,
    memory: int = MEMORY,
) -> list[str]:
    """Do something to every quantized layer, in order of execution.

    Args:
        student: Calibrated; observers are off meanwhile, and what has a range is quantized.
        batches: See `zaq_plugin.student.batches.as_call`; all are kept in memory.
        begin: Starts the work on a layer; see `Begin`.
        what: Who asks, for errors.
        memory: Bytes that activations may take. If all batches fit, one forward pass does all
            layers; otherwise each layer takes a pass of its own, batch by batch, up to that layer.

    Returns:
        The names of the layers that the batches reached, in order of execution.

    Raises:
        ValueError: If there are no batches.
    """
    calls = as_calls(batches, what, inputs_of(student.model))
    with quantizing(student.model), student.evaluating():
        census = _Census(student, fresh(calls[0]))
        if not _in_one_pass(student, calls, census, begin, memory):
            _layer_by_layer(student, census.calls, calls, begin)
    return list(census.calls)


class _Census:
    """How often each layer is called, in order of the first call, on one batch.

    Attributes:
        calls: By layer.
        bytes: What a sample takes of memory, at its widest.
        batched: Whether the first axis of the model's input counts samples.
    """

    def __init__(self, student: Student, call: Call) -> None:
        self.calls: Counter[str] = Counter()
        self.batched = True
        peak = 0

        def look(layer: QuantLayer, x: Tensor) -> None:
            nonlocal peak
            self.calls[layer.name] += 1
            peak = max(peak, x.numel() * x.element_size())
            self.batched &= _counts_samples(layer, x, call)

        student.run(call, look)
        # Beside a layer's input there are its output, and the shortcut around a block.
        self.bytes = 4 * peak / max(1, samples(call))


def _counts_samples(layer: QuantLayer, x: Tensor, call: Call) -> bool:
    """Whether the first axis of the model's input may count samples: a layer's input follows it.

    A single image gets a batch axis inside some models; its own first axis is that of channels.
    """
    count = samples(call)
    if x.dim() < 2:
        return False
    if isinstance(layer.plain, nn.Linear):
        return len(x) > 1 or count <= 1
    given = next((v.dim() for v in (*call[0], *call[1].values()) if isinstance(v, Tensor)), 0)
    if x.dim() != layer.weight.dim() or (count == 1 and given < x.dim()):
        return False
    return count == 0 or len(x) % count == 0


def _in_one_pass(
    student: Student, calls: Sequence[Call], census: _Census, begin: Begin, memory: int
) -> bool:
    """Every layer is done the moment before it runs on all samples at once; False: it cannot be."""
    count = sum(samples(call) for call in calls)
    fits = bool(count) and count * census.bytes <= memory
    if not fits or any(times > 1 for times in census.calls.values()):
        return False
    together = merged(calls) if census.batched else list(calls)
    together = [fresh(call) for call in together]

    def finish(layer: QuantLayer, inputs: Sequence[Tensor]) -> None:
        work = begin(layer, count if census.batched else len(calls))
        for x in inputs:
            work.add(x)
        work.finish()

    if len(together) == 1:
        student.run(together[0], lambda layer, x: finish(layer, [x]))
        return True
    return student.run_together(together, finish)


def _layer_by_layer(
    student: Student, order: Counter[str], calls: Sequence[Call], begin: Begin
) -> None:
    """One pass over the batches for each layer, cut off behind the layer's last call."""
    layers = student.layers()
    count = sum(samples(call) for call in calls)
    for name, expected in order.items():
        work, seen, reached = begin(layers[name], count), 0, False

        def take(layer: QuantLayer, x: Tensor, name: str = name, expected: int = expected,
                 work: LayerWork = work) -> None:  # fmt: skip
            nonlocal seen, reached
            if layer.name != name:
                return
            work.add(x)
            seen, reached = seen + 1, True
            if seen == expected:
                raise _Stop

        for call in calls:
            seen = 0
            with suppress(_Stop):
                student.run(fresh(call), take)
        if reached:
            work.finish()
