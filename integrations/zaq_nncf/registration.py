"""Letting NNCF's min-max algorithm place PWLQ quantizers instead of its own.

While registered, ``nncf.quantize`` makes its quantizers as ever, and ours are put in their places
before they are inserted: everything that comes after, bias correction above all, sees PWLQ weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from zaq_nncf._compat import (
    PLACING,
    BaseQuantizer,
    PTMinMaxAlgoBackend,
    constant_at,
    is_weighted,
    weight_axis,
)
from zaq_nncf.activation_quantizers import uniform_activation
from zaq_nncf.extension import compile_extension
from zaq_nncf.placement import read_elsewhere
from zaq_nncf.settings import Override, Settings, layer_name
from zaq_nncf.weight_quantizer import named, pwlq_weight
from zaq_plugin.pwlq import QuantSpec

_lock = threading.RLock()
_originals: dict[str, Any] = {}
_users = 0
_registered: list[Settings] = []  # one at most, for the whole process


class _Local(threading.local):
    """The settings of `zaq_nncf.quantize`, for its own thread."""

    settings: Settings | None = None


_local = _Local()


class Registration:
    """What `register` returns: leave a ``with`` block, and things are as before it."""

    def __init__(self, before: list[Settings]) -> None:
        self._before = before

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _set(self._before)


def register(
    spec: QuantSpec | None = None,
    *,
    overrides: Mapping[str, Override] | None = None,
    learnable: bool = False,
) -> Registration:
    """From now on ``nncf.quantize`` puts PWLQ on the weights of torch models.

    A second call replaces the settings of the first. The change holds for the whole process until
    `unregister`, or until the end of the ``with`` block that the result is used in:

        with zaq_nncf.register(PWLQSpec(bits=4)):
            quantized = nncf.quantize(model, dataset)

    NNCF then does what it does by itself: fold BatchNorm first (`zaq_nncf.prepare_model`), and see
    `zaq_nncf.quantize` for the options that suit PWLQ, and for what NNCF's default ranges clip.

    Args:
        spec: The weights' format; ``PWLQSpec()`` (4 MAC bits, 5 stored) if None.
        overrides: Formats by layer name, name of a module around, or pattern; None leaves a layer
            to NNCF's own int8.
        learnable: Train the activations' steps, too.

    Raises:
        TypeError: a format that is none.
        ValueError: an override by module class, which needs the model.
    """
    with _lock:
        before = list(_registered)
        _set([Settings(spec, overrides, learnable)])
    return Registration(before)


def unregister() -> None:
    """NNCF places its own quantizers again. Nothing happens if nothing was registered."""
    _set([])


def is_registered() -> bool:
    """Whether ``nncf.quantize`` places PWLQ quantizers now."""
    return bool(_registered)


def _set(settings: list[Settings]) -> None:
    with _lock:
        change = bool(settings) - bool(_registered)
        _registered[:] = settings
        if change:
            _use(change)


@contextmanager
def in_this_thread(settings: Settings) -> Iterator[None]:
    """Place our quantizers in this thread's calls of ``nncf.quantize`` only."""
    before = _local.settings
    _local.settings = settings
    _use(1)
    try:
        yield
    finally:
        _use(-1)
        _local.settings = before


def _use(change: int) -> None:
    """Count who needs NNCF's methods replaced; the last one gives them back."""
    global _users
    with _lock:
        _users += change
        if _users and not _originals:
            for name in PLACING:
                _originals[name] = PTMinMaxAlgoBackend.__dict__[name]
                setattr(PTMinMaxAlgoBackend, name, staticmethod(_placing(_originals[name])))
        elif not _users:
            for name, original in _originals.items():
                setattr(PTMinMaxAlgoBackend, name, original)
            _originals.clear()


def _settings() -> Settings | None:
    return _local.settings or (_registered[0] if _registered else None)


def _placing(original: Any) -> Callable[..., Any]:
    """NNCF's method with our quantizer in the place of the one it made."""

    def place(*args: Any, **kwargs: Any) -> Any:
        commands = original.__func__(*args, **kwargs)
        settings = _settings()
        if settings is not None:
            graph = args[0] if args else kwargs["nncf_graph"]
            for command in commands if isinstance(commands, list) else [commands]:
                native = command.hook_module
                command.hook_module = _ours(settings, graph, command.target_points, native)
        return commands

    return place


def _ours(settings: Settings, graph: Any, points: list[Any], native: BaseQuantizer) -> Any:
    """Our quantizer for these places, or NNCF's own where it stays."""
    if points[0].is_weight_target_point():
        constant = constant_at(_node(graph, points[0]), points[0].input_port_id, graph)
        if constant is not None:
            weight, shared = constant.layer_attributes.name, read_elsewhere(graph, constant)
            spec = settings.format_of(layer_name(weight))
            if spec is not None and is_weighted(_node(graph, points[0])):
                axis = _axis(graph, points[0])
                return pwlq_weight(native, spec, axis, weight, shared)
            native = named(native, weight, shared)
    elif not native.per_channel:
        return uniform_activation(native, learnable=settings.learnable)
    compile_extension()  # a quantizer of NNCF's own will need it
    return native


def _node(graph: Any, point: Any) -> Any:
    return graph.get_node_by_name(point.target_node_name)


def _axis(graph: Any, point: Any) -> int | None:
    """The channel axis of the weight at a place."""
    rank = len(graph.get_input_shape_for_insertion_point(point))
    return weight_axis(_node(graph, point), rank, point.input_port_id)
