from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from zaq_plugin.zero_shot.discrepancy import output_discrepancy
from zaq_plugin.zero_shot.outputs import all_outputs, detached, mean_over, select


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
