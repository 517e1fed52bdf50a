"""Taps: the points whose activations are compared between teacher and student.

A tap is a module's output, found under the same name in both. Eager models are full of modules; the
graphs that torch.ao and torchao prepare carry a module (observer or fake-quantizer) on every
activation.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.student.fake_quantizers import is_weight_quantizer
from zaq_plugin.zero_shot.discrepancy import (
    LayerWeights,
    feature_discrepancy,
    feature_distance,
)
from zaq_plugin.zero_shot.statistics import BatchNormProbe


def find_taps(
    model: nn.Module, example: Tensor, pattern: str | Sequence[str] | None = None
) -> list[str]:
    """Names of the tapped modules, in the order of execution.

    Without a pattern: the last feature map at each spatial size (and the last token sequence of
    each length), the way networks are divided into stages.

    Args:
        model: An eager model or a prepared graph.
        example: A small batch of images.
        pattern: Module names as in ``fnmatch``, one or several; all that match are taps.

    Raises:
        ValueError: if a pattern matches no module that gives one tensor, or nothing can be tapped.
    """
    shapes = _output_shapes(model, example)
    if pattern is not None:
        return _matching(shapes, [pattern] if isinstance(pattern, str) else list(pattern))
    plain = _last_at_each_size(shapes, len(example), quantizers=False, model=model)
    taps = plain or _last_at_each_size(shapes, len(example), quantizers=True, model=model)
    if not taps:
        raise ValueError(
            f"{type(model).__name__} has no feature map to compare: none of its {len(shapes)} "
            "modules gives a tensor (batch, channels, height, width) or (batch, tokens, channels). "
            "Set alpha=0 and feature_weight=0 to compare outputs only."
        )
    return taps


def _last_at_each_size(
    shapes: dict[str, tuple[int, ...]], batch: int, *, quantizers: bool, model: nn.Module
) -> list[str]:
    """Fake-quantizers and observers count only where there is nothing else (exported graphs)."""
    last: dict[tuple[int, ...], str] = {}
    for name, shape in shapes.items():
        if not quantizers and hasattr(model.get_submodule(name), "calculate_qparams"):
            continue
        if len(shape) < 3 or shape[0] != batch or min(shape[1:]) < 1:
            continue
        size = shape[2:] if len(shape) > 3 else shape[1:2]
        if max(size) > 1:
            last.pop(size, None)
            last[size] = name
    return list(last.values())


def _matching(shapes: dict[str, tuple[int, ...]], patterns: list[str]) -> list[str]:
    matches: list[str] = []
    for pattern in patterns:
        hits = [name for name in shapes if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            some = ", ".join(list(shapes)[:12])
            raise ValueError(
                f"the tap pattern {pattern!r} matches no module that gives one tensor; the modules "
                f"that do begin with: {some}."
            )
        matches += [name for name in hits if name not in matches]
    return [name for name in shapes if name in matches]


def _output_shapes(model: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, module in model.named_modules():
        probe = isinstance(module, BatchNormProbe)
        if not name or probe or is_weight_quantizer(module) or ".parametrizations." in f".{name}.":
            continue

        def keep(_: nn.Module, args: Any, output: object, name: str = name) -> None:
            shapes.pop(name, None)
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            # Maps that are masked with minus infinity, or nearly so, have no distance.
            if output.dim() >= 2 and bool(output.float().square().sum().isfinite()):
                shapes[name] = tuple(output.shape)

        handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            model(example.clone())
    finally:
        for handle in handles:
            handle.remove()
    return shapes


class TapSet:
    """Keeps the latest output of each tapped module of a model.

    Args:
        model: Teacher or student.
        names: From `find_taps`.

    Raises:
        ValueError: if the model lacks one of the names.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.names = list(names)
        self.features: dict[str, Tensor] = {}
        self._handles = []
        modules = dict(model.named_modules())
        missing = [name for name in names if name not in modules]
        if missing:
            raise ValueError(
                f"{type(model).__name__} has no module {missing[0]!r} to tap; teacher and student "
                "must carry the same names: use the student's twin as its teacher."
            )
        for name in names:
            self._handles.append(modules[name].register_forward_hook(self._keeper(name)))

    def _keeper(self, name: str) -> Any:
        def keep(_: nn.Module, args: Any, output: Tensor) -> None:
            self.features[name] = output

        return keep

    def take(self) -> dict[str, Tensor]:
        """The features of the latest forward pass, in the order of the names; forgets them.

        Raises:
            ValueError: if the model has not run since the last call.
        """
        missing = [name for name in self.names if name not in self.features]
        if missing:
            raise ValueError(
                f"the tap {missing[0]!r} has seen nothing since it was last read: run the student "
                "on the loader's images before calling loader.loss(...), once per batch."
            )
        features = {name: self.features[name] for name in self.names}
        self.features = {}
        return features

    def clear(self) -> None:
        """Forget the kept features."""
        self.features = {}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class TapPair:
    """Teacher and student at the same taps, and λ, how much each of these counts.

    Args:
        teacher: P.
        student: Q, not wrapped.
        names: From `find_taps`.
        weights: λ.
        norm: Of the relation maps' distance, see `relation_distance`.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        names: Sequence[str],
        weights: LayerWeights,
        norm: str,
    ) -> None:
        self.models = teacher, student
        self.teacher, self.student = TapSet(teacher, names), TapSet(student, names)
        self.names, self.weights, self.norm = list(names), weights, norm
        self._expected: dict[str, Tensor] = {}

    @property
    def shares(self) -> dict[str, float]:
        """λ by tap."""
        return dict(zip(self.names, self.weights.values.tolist(), strict=True))

    def expect(self) -> None:
        """The teacher has just answered a batch: what it had at the taps is what is compared to."""
        self._expected = self.teacher.take()
        self.student.clear()

    def compare(self, *, relations: bool, values: bool) -> dict[str, Tensor]:
        """What the student has at the taps against what is expected: ``D_f`` and ``features``.

        Args:
            relations: Whether to compare relation maps (ZAQ's D_f, which λ observes).
            values: Whether to compare the features themselves.

        Raises:
            ValueError: if the student has not run since the last call.
        """
        seen, terms = self.student.take(), {}
        if relations:
            total, distances = feature_discrepancy(self._expected, seen, self.weights, self.norm)
            self.weights.observe(distances)
            terms["D_f"] = total
        if values:
            terms["features"] = feature_distance(self._expected, seen)
        return terms

    @torch.no_grad()
    def on_images(self, images: Tensor, *, renew: bool) -> float:
        """D_f on some images; both models are run as they stand.

        Args:
            images: (N, C, H, W).
            renew: Whether this counts as one of λ's epochs.
        """
        for taps, model in zip((self.teacher, self.student), self.models, strict=True):
            taps.clear()
            model(images.clone())
        total, distances = feature_discrepancy(
            self.teacher.take(), self.student.take(), self.weights, self.norm
        )
        if renew:
            self.weights.observe(distances)
            self.weights.end_epoch()
        return float(total)

    def close(self) -> None:
        """Remove the hooks."""
        self.teacher.close()
        self.student.close()
