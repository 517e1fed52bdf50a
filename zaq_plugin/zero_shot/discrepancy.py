"""How far the student is from the teacher, and how awake the teacher is (ZAQ, section 3).

P is the teacher, Q the student. All functions are plain tensor code and differentiable. Models with
several outputs (segmentation, detection heads) are seen through an output adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.output_distance import agreements, divergences, is_single

OutputAdapter = Callable[[object], list[Tensor]]


def all_outputs(output: object) -> list[Tensor]:
    """Every floating-point tensor of an output, depth first: lists, tuples, dicts, dataclasses.

    Raises:
        TypeError: if there is none.
    """
    tensors: list[Tensor] = []
    _collect(output, tensors)
    if not tensors:
        raise TypeError(
            f"the model's output ({type(output).__name__}) holds no floating-point tensor; give an "
            "output adapter (output) -> list of tensors."
        )
    return tensors


def _collect(value: object, tensors: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            tensors.append(value)
    elif isinstance(value, Mapping):
        for part in value.values():
            _collect(part, tensors)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for part in value:
            _collect(part, tensors)
    elif is_dataclass(value):
        for field in fields(value):
            _collect(getattr(value, field.name), tensors)


def select(*keys: int | str) -> OutputAdapter:
    """An adapter that takes some of the outputs: by position of a list, or by key of a dict."""
    if not keys:
        raise ValueError("select: name at least one output, by position or key.")

    def adapt(output: object) -> list[Tensor]:
        try:
            parts = [output[key] for key in keys]  # type: ignore[index]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"select: the model's output ({type(output).__name__}) has no {keys}."
            ) from error
        return all_outputs(parts)

    return adapt


def detached(output: object) -> object:
    """The same structure without gradients: tensors, lists, tuples and dicts."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, Mapping):
        return {key: detached(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        parts: list[Any] = [detached(value) for value in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output


def mean_over(
    function: Callable[[Tensor, Tensor], Tensor], teacher: list[Tensor], student: list[Tensor]
) -> Tensor:
    """Mean of a discrepancy over the outputs."""
    if len(teacher) != len(student):
        raise ValueError(
            f"teacher and student have {len(teacher)} and {len(student)} outputs; give an output "
            "adapter that takes the same ones from both."
        )
    return torch.stack([function(t, s) for t, s in zip(teacher, student, strict=True)]).mean()


def output_discrepancy(teacher: Tensor, student: Tensor) -> Tensor:
    """D_o = (1/N) ||P(x) - Q(x)||_1, N the number of output values; a scalar."""
    _check_same_shape("output_discrepancy", teacher, student)
    return absolute_error(teacher, student).mean()


def absolute_error(teacher: Tensor, student: Tensor) -> Tensor:
    """|P(x) - Q(x)| of each value; 0 where both are the same infinity (a masked class)."""
    return torch.where(teacher == student, 0.0, teacher - student).abs()


def teacher_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(P || Q) of the class distributions, mean over the batch (and positions); a scalar.

    For an output with one channel, where a distribution over classes says nothing, the squared
    error relative to the teacher's spread over the batch.

    Args:
        teacher: Logits (B, K) or (B, K, ...); (B,), (B, 1) or (B, 1, ...) is one channel.
        student: Logits of the same shape.
        temperature: Softens both classes' logits; the result is scaled by its square, as in
            distillation. It says nothing to one channel.
    """
    _check_same_shape("teacher_divergence", teacher, student)
    factor = 1.0 if is_single(teacher) else temperature**2
    return divergences(teacher, student, temperature=temperature).mean() * factor


def agreement(teacher: Tensor, student: Tensor) -> Tensor:
    """Share of samples (and positions) whose top class is the same; a scalar in 0..1.

    With one channel, the share on the same side of 0 (of the teacher's mean, if all its values have
    one sign).
    """
    _check_same_shape("agreement", teacher, student)
    return agreements(teacher, student).mean()


def channel_relation_map(features: Tensor) -> Tensor:
    """CRM = R Rᵀ (C, C): cosine similarities of the channels over the whole batch.

    Args:
        features: (B, C, ...) maps or (B, C) vectors; (B, T, C) token sequences.

    The map is unrolled channel by channel over the whole batch to (C, B * H * W) and its rows are
    normalised to R; unlike a Gram matrix, the batch is part of the row. A zero channel relates to
    nothing, itself included.
    """
    if features.dim() < 2:
        raise ValueError(
            f"channel_relation_map: expected at least two dimensions (batch, channels); got shape "
            f"{tuple(features.shape)}."
        )
    axis = 2 if features.dim() == 3 else 1
    rows = features.movedim(axis, 0).flatten(1)
    rows = nn.functional.normalize(rows, dim=1)
    return rows @ rows.t()


def relation_distance(teacher: Tensor, student: Tensor, norm: str = "mean") -> Tensor:
    """||CRM_P - CRM_Q||_1 of one tap; a scalar.

    Args:
        teacher: Features of P.
        student: Features of Q, of the same shape.
        norm: ``sum`` is the paper's norm, ``mean`` divides it by C^2, so that wide layers do not
            rule the sum over layers.
    """
    _check_same_shape("relation_distance", teacher, student)
    gap = (channel_relation_map(teacher) - channel_relation_map(student)).abs()
    if norm not in ("sum", "mean"):
        raise ValueError(f"relation_distance: norm must be 'sum' or 'mean'; got {norm!r}.")
    return gap.sum() if norm == "sum" else gap.mean()


def activation_regulariser(features: Tensor) -> Tensor:
    """L_a = -(1/N) ||F||_1 of P's last feature map: smaller as P's features are more excited."""
    return -features.abs().mean()


class LayerWeights(nn.Module):
    """λ of D_f = Σ_l λ_l d_l: softmax over layers of the distances' moving average.

    Each epoch, the mean distance of every layer goes into an exponential moving average, and λ is
    the softmax over layers of that average. Before the first epoch ends λ is uniform.

    Args:
        layers: Number of taps.
        decay: Share of the old average that an epoch keeps.
    """

    average: Tensor
    total: Tensor
    count: Tensor
    epochs: Tensor

    def __init__(self, layers: int, decay: float = 0.9) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"LayerWeights: expected at least one layer; got {layers}.")
        if not 0 <= decay < 1:
            raise ValueError(f"LayerWeights: decay must be in [0, 1); got {decay}.")
        self.decay = decay
        for name in ("average", "total"):
            self.register_buffer(name, torch.zeros(layers))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    @property
    def values(self) -> Tensor:
        """λ, (layers,), sums to 1."""
        if int(self.epochs) == 0:
            return torch.full_like(self.average, 1 / self.average.numel())
        return torch.softmax(self.average, dim=0)

    def observe(self, distances: Sequence[Tensor]) -> None:
        """Add the distances of one step."""
        with torch.no_grad():
            self.total += torch.stack([d.detach().to(self.total) for d in distances])
            self.count += 1

    def end_epoch(self) -> None:
        """Fold the steps seen since the last call into the moving average."""
        if int(self.count) == 0:
            return
        mean = self.total / self.count
        first = int(self.epochs) == 0
        self.average.copy_(mean if first else self.decay * self.average + (1 - self.decay) * mean)
        self.total.zero_()
        self.count.zero_()
        self.epochs += 1


def feature_discrepancy(
    teacher: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    weights: LayerWeights,
    norm: str = "mean",
) -> tuple[Tensor, list[Tensor]]:
    """D_f = Σ_l λ_l ||CRM_P^l - CRM_Q^l||_1 and the distances of the layers.

    Args:
        teacher: Features of P by tap name.
        student: Features of Q under the same names.
        weights: λ, in the order of teacher's names.
        norm: As in `relation_distance`.

    Raises:
        ValueError: if the taps differ in name, number or shape.
    """
    if list(teacher) != list(student):
        raise ValueError(
            f"feature_discrepancy: teacher and student have different taps: {list(teacher)} and "
            f"{list(student)}."
        )
    if len(teacher) != weights.average.numel():
        raise ValueError(
            f"feature_discrepancy: {len(teacher)} taps, but weights for "
            f"{weights.average.numel()} layers."
        )
    distances = [relation_distance(teacher[name], student[name], norm) for name in teacher]
    values = weights.values
    total = torch.stack([values[i] * d for i, d in enumerate(distances)]).sum()
    return total, distances


def feature_distance(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> Tensor:
    """Σ_l mean (F_P - F_Q)^2 / mean F_P^2 over the taps; a scalar."""
    parts = []
    for name, mine in teacher.items():
        energy = mine.square().mean().clamp(min=1e-12)
        parts.append((mine - student[name]).square().mean() / energy)
    return torch.stack(parts).sum()


def _check_same_shape(name: str, teacher: Tensor, student: Tensor) -> None:
    if teacher.shape != student.shape:
        raise ValueError(
            f"{name}: teacher and student differ in shape: {tuple(teacher.shape)} and "
            f"{tuple(student.shape)}. Models with several outputs need an output adapter."
        )
