"""Each term against loops over float64 numbers."""

from __future__ import annotations

import math
from collections import namedtuple

import numpy as np
import pytest
import torch

from zaq_plugin.zero_shot.discrepancy import (
    LayerWeights,
    activation_regulariser,
    agreement,
    all_outputs,
    channel_relation_map,
    detached,
    feature_discrepancy,
    feature_distance,
    mean_over,
    output_discrepancy,
    relation_distance,
    select,
    teacher_divergence,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct_relation(x: np.ndarray) -> np.ndarray:
    batch, channels, height, width = x.shape
    rows = np.zeros((channels, batch * height * width))
    for c in range(channels):
        rows[c] = [x[b, c, i, j] for b in range(batch) for i in range(height) for j in range(width)]
        rows[c] /= math.sqrt(sum(v * v for v in rows[c]))
    return np.array([[sum(a * b for a, b in zip(p, q, strict=True)) for q in rows] for p in rows])


def test_output_discrepancy() -> None:
    p, q = random(5, 3, seed=1), random(5, 3, seed=2)
    direct = sum(abs(float(p[i, k] - q[i, k])) for i in range(5) for k in range(3)) / 15
    assert float(output_discrepancy(p, q)) == pytest.approx(direct, rel=1e-12)


def test_teacher_divergence() -> None:
    p, q, t = random(4, 3, seed=1), random(4, 3, seed=2), 2.0

    def softmax(row: np.ndarray) -> np.ndarray:
        e = np.exp(row / t)
        return e / e.sum()

    direct = 0.0
    for i in range(4):
        a, b = softmax(p[i].numpy()), softmax(q[i].numpy())
        direct += sum(a[k] * math.log(a[k] / b[k]) for k in range(3)) / 4
    assert float(teacher_divergence(p, q, t)) == pytest.approx(direct * t * t, rel=1e-10)


def test_agreement_counts_positions_too() -> None:
    p = torch.zeros(1, 2, 2, 2)
    p[0, 1, 0] = 1
    q = torch.zeros(1, 2, 2, 2)
    q[0, 1, 0, 0] = 1
    assert float(agreement(p, q)) == 0.75


def test_channel_relation_map() -> None:
    x = random(3, 4, 2, 5)
    np.testing.assert_allclose(
        channel_relation_map(x).numpy(), direct_relation(x.numpy()), rtol=1e-12, atol=1e-12
    )


def test_relation_map_sees_the_whole_batch() -> None:
    """Unlike a mean of per-image Gram matrices."""
    x = random(2, 3, 4, 4)
    each = torch.stack([channel_relation_map(x[i : i + 1]) for i in range(2)]).mean(0)
    assert not torch.allclose(channel_relation_map(x), each)


def test_tokens_have_their_channels_last() -> None:
    tokens = random(2, 5, 3)
    maps = tokens.movedim(2, 1).reshape(2, 3, 5, 1)
    torch.testing.assert_close(channel_relation_map(tokens), channel_relation_map(maps))


def test_zero_channel_relates_to_nothing() -> None:
    x = random(2, 3, 2, 2)
    x[:, 1] = 0
    crm = channel_relation_map(x)
    assert crm[1].abs().max() == 0
    assert torch.isfinite(crm).all()


@pytest.mark.parametrize("norm", ["sum", "mean"])
def test_relation_distance(norm: str) -> None:
    p, q = random(2, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)
    gap = np.abs(direct_relation(p.numpy()) - direct_relation(q.numpy()))
    direct = gap.sum() if norm == "sum" else gap.mean()
    assert float(relation_distance(p, q, norm)) == pytest.approx(direct, rel=1e-10)


def test_feature_discrepancy_with_softmaxed_moving_average() -> None:
    weights = LayerWeights(2, decay=0.8).double()
    average: list[float] | None = None
    for epoch in range(3):
        steps = []
        for step in range(2):
            p = {n: random(2, 3, 2, 2, seed=10 * epoch + step + k) for k, n in enumerate("ab")}
            q = {n: random(2, 3, 2, 2, seed=99 + 10 * epoch + step + k) for k, n in enumerate("ab")}
            total, distances = feature_discrepancy(p, q, weights, "sum")
            weights.observe(distances)
            direct = [
                np.abs(direct_relation(p[n].numpy()) - direct_relation(q[n].numpy())).sum()
                for n in "ab"
            ]
            if average is None:
                share = [0.5, 0.5]
            else:
                top = [math.exp(a - max(average)) for a in average]
                share = [t / sum(top) for t in top]
            expected = share[0] * direct[0] + share[1] * direct[1]
            assert float(total) == pytest.approx(expected, rel=1e-9)
            steps.append(direct)
        weights.end_epoch()
        mean = [(steps[0][k] + steps[1][k]) / 2 for k in range(2)]
        if average is None:
            average = mean
        else:
            average = [0.8 * a + 0.2 * m for a, m in zip(average, mean, strict=True)]
    assert float(weights.values.sum()) == pytest.approx(1)


def test_feature_distance_is_relative_to_the_teachers_energy() -> None:
    p = {n: random(2, 3, 2, 2, seed=k) for k, n in enumerate("ab")}
    q = {n: random(2, 3, 2, 2, seed=9 + k) for k, n in enumerate("ab")}
    direct = 0.0
    for n in "ab":
        gap = sum(float(v) ** 2 for v in (p[n] - q[n]).flatten())
        direct += gap / sum(float(v) ** 2 for v in p[n].flatten())
    assert float(feature_distance(p, q)) == pytest.approx(direct, rel=1e-10)


def test_activation_regulariser_falls_as_features_grow() -> None:
    x = random(2, 3, 2, 2)
    direct = -sum(abs(float(v)) for v in x.flatten()) / x.numel()
    assert float(activation_regulariser(x)) == pytest.approx(direct, rel=1e-12)
    assert activation_regulariser(2 * x) < activation_regulariser(x)


def test_gradients() -> None:
    p = random(2, 3, 2, 2, seed=1)
    q = random(2, 3, 2, 2, seed=2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: relation_distance(p, v), (q,))
    a, b = random(3, 4, seed=3), random(3, 4, seed=4).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: teacher_divergence(a, v), (b,))
    assert torch.autograd.gradcheck(lambda v: output_discrepancy(a, v), (b,))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"differ in shape: \(2, 3\) and \(2, 4\)"):
        output_discrepancy(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="norm must be 'sum' or 'mean'; got 'max'"):
        relation_distance(torch.zeros(2, 3), torch.zeros(2, 3), "max")
    with pytest.raises(ValueError, match="at least two dimensions"):
        channel_relation_map(torch.zeros(3))
    with pytest.raises(ValueError, match="have different taps"):
        feature_discrepancy({"a": torch.ones(1, 1)}, {"b": torch.ones(1, 1)}, LayerWeights(1))
    with pytest.raises(ValueError, match="1 taps, but weights for 2 layers"):
        feature_discrepancy({"a": torch.ones(1, 1)}, {"a": torch.ones(1, 1)}, LayerWeights(2))


def test_every_float_tensor_is_found() -> None:
    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    labels = torch.zeros(2, dtype=torch.long)
    tensors = all_outputs({"boxes": [a, labels], "masks": (b, {"deep": c})})
    assert [t.numel() for t in tensors] == [1, 2, 3]
    with pytest.raises(TypeError, match="holds no floating-point tensor; give an output adapter"):
        all_outputs([labels])


def test_selection() -> None:
    output = [torch.zeros(1), torch.ones(2)]
    assert [t.numel() for t in select(1)(output)] == [2]
    assert [t.numel() for t in select("out")({"out": torch.zeros(4), "aux": output})] == [4]
    with pytest.raises(ValueError, match="has no \\('out',\\)"):
        select("out")({"aux": output})
    with pytest.raises(ValueError, match="name at least one output"):
        select()


def test_detached_keeps_the_structure() -> None:
    Pair = namedtuple("Pair", "left right")
    x = torch.ones(2, requires_grad=True) * 2
    output = detached({"a": [x, (x, 3)], "b": Pair(x, "text")})
    assert isinstance(output, dict)
    assert isinstance(output["b"], Pair)
    assert output["b"].right == "text"
    assert not any(t.requires_grad for t in all_outputs(output))


def test_mean_over_outputs() -> None:
    teacher = [torch.zeros(2), torch.zeros(4)]
    student = [torch.ones(2), 3 * torch.ones(4)]
    assert float(mean_over(output_discrepancy, teacher, student)) == 2.0
    with pytest.raises(ValueError, match="have 2 and 1 outputs"):
        mean_over(output_discrepancy, teacher, student[:1])
