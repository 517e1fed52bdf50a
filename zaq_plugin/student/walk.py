"""Layer after layer in order of execution, each on the student's own stream of inputs.

What is done to a layer when its inputs are known is seen by all layers behind it. All batches go
through the student side by side: each waits in front of a layer until all have come there and the
layer is done. Batches for which there is no room begin anew for every layer.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zaq_plugin.student.batches import Call, as_calls, fresh, inputs_of, merged, samples, taking
from zaq_plugin.student.fake_quantizers import quantizing
from zaq_plugin.student.layer import QuantLayer
from zaq_plugin.student.passes import Passes, run_up_to
from zaq_plugin.student.view import Student


class LiveBytes(TorchDispatchMode):
    """Inside ``with``, remembers every tensor that is made, until nobody holds it any more."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operator, and remember what it made."""
        out = func(*args, **(kwargs or {}))
        self._made += [weakref.ref(x) for x in tree_leaves(out) if isinstance(x, Tensor)]
        return out

    def now(self) -> int:
        """Bytes at this moment; tensors that share their memory count once."""
        alive = [(ref, x) for ref in self._made if (x := ref()) is not None]
        self._made = [ref for ref, _ in alive]
        storages = {s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for _, x in alive)}
        return sum(storages.values())


MEMORY = 3 << 30
SIDE_BY_SIDE = 32
"""Batches at most that wait in the middle of the student: each has a thread."""
MERGED = 64
"""Samples up to which small batches are put together, if the memory has room for them."""


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
        memory: Bytes that activations of waiting batches may take. If all batches fit, the student
            is run once; those that do not fit are run anew for each layer, up to it.

    Returns:
        The names of the layers that the batches reached, in order of execution.

    Raises:
        ValueError: If there are no batches.
    """
    calls = as_calls(batches, what, inputs_of(student.model))
    with quantizing(student.model), student.evaluating():
        census = _Census(student, fresh(calls[0]))
        count = sum(map(samples, calls)) if census.batched else len(calls)
        calls = _parts(calls, census, memory, student.interleaves)
        waiting = _room(calls, census, memory, student.interleaves)
        layers = student.layers()
        with closing(Passes(student, calls[:waiting])) as passes:
            for name, times in census.calls.items():
                work, reached = begin(layers[name], count), False
                # A layer that is called twice is not done before its second call.
                again = calls if times > 1 else calls[waiting:]
                for x in passes.inputs(name) if times == 1 else ():
                    work.add(x)
                    reached = True
                for call in again:
                    reached |= run_up_to(student, call, name, times, work.add)
                if reached:
                    work.finish()
                passes.let_go(name)
    return list(census.calls)


class _Census:
    """How often each layer is called, in order of the first call, on one batch.

    Attributes:
        calls: By layer.
        bytes: What a sample takes of memory in front of a layer, at most.
        batched: Whether the first axis of the model's input counts samples.
    """

    def __init__(self, student: Student, call: Call) -> None:
        self.calls: Counter[str] = Counter()
        self.batched = True
        peak = 0

        def look(layer: QuantLayer, x: Tensor) -> None:
            nonlocal peak
            self.calls[layer.name] += 1
            peak = max(peak, live.now(), x.numel() * x.element_size())
            self.batched &= _counts_samples(layer, x, call)

        with LiveBytes() as live, taking(student.model, call):
            student.run(call, look)
        self.bytes = max(1, peak // max(1, samples(call)))


def _counts_samples(layer: QuantLayer, x: Tensor, call: Call) -> bool:
    """Whether the first axis of the model's input may count samples: a layer's input follows it.

    A single image gets a batch axis inside some models; its own first axis is that of channels.
    """
    count = samples(call)
    if x.dim() < 2:
        return False
    if isinstance(layer.plain, nn.Linear):
        return len(x) > 1 or count <= 1
    dims = next((v.dim() for v in (*call[0], *call[1].values()) if isinstance(v, Tensor)), 0)
    if x.dim() != layer.weight.dim() or (count == 1 and dims < x.dim()):
        return False
    return count == 0 or len(x) % count == 0


def _parts(calls: Sequence[Call], census: _Census, memory: int, interleaves: bool) -> list[Call]:
    """The batches, put together or cut where they are alike: neither tiny nor too large."""
    together = merged(calls) if census.batched else list(calls)
    if len(together) > 1 or not census.batched:
        return together
    (images,), _ = together[0]
    if not interleaves:
        return together if 2 * len(images) * census.bytes <= memory else list(calls)
    largest = max(map(samples, calls))
    size = max(1, min(MERGED, max(largest, memory // (8 * census.bytes))))
    return [((part,), {}) for part in images.split(size)]


def _room(calls: Sequence[Call], census: _Census, memory: int, interleaves: bool) -> int:
    """How many of the batches may wait in the middle of the student; one is running beside them."""
    if not interleaves:
        return int(len(calls) == 1 and max(census.calls.values(), default=1) == 1)
    sizes = [max(1, samples(call)) * census.bytes for call in calls]
    left, count = memory - max(sizes), 0
    for size in sizes[:SIDE_BY_SIDE]:
        left -= size
        count += left >= 0
    return count
