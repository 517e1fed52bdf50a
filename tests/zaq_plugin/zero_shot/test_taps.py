from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.student import twin
from zaq_plugin.zero_shot.taps import TapSet, find_taps


def test_last_map_at_each_size(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    student = make_student(tiny())
    assert find_taps(student, torch.zeros(2, 3, 8, 8)) == ["stage1", "stage2"]
    assert find_taps(twin(student), torch.zeros(2, 3, 8, 8)) == ["stage1", "stage2"]


def test_patterns(tiny: Callable[..., nn.Module]) -> None:
    example = torch.zeros(2, 3, 8, 8)
    assert find_taps(tiny(), example, "stage*.0.conv1") == ["stage1.0.conv1", "stage2.0.conv1"]
    assert find_taps(tiny(), example, ["head", "stem"]) == ["stem", "head"]
    with pytest.raises(ValueError, match=r"the tap pattern 'layer\*' matches no module"):
        find_taps(tiny(), example, "layer*")


def test_token_sequences_are_tapped() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, stride=4)
            self.mix = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.embed(x).flatten(2).transpose(1, 2)).mean(1)

    assert find_taps(Tokens(), torch.zeros(2, 3, 8, 8)) == ["embed", "mix"]


def test_nothing_to_tap() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="Sequential has no feature map to compare"):
        find_taps(model, torch.zeros(2, 3, 2, 2))


def test_taps_keep_the_latest_features(tiny: Callable[..., nn.Module]) -> None:
    model = tiny()
    x = torch.randn(2, 3, 8, 8)
    with closing(TapSet(model, ["stem", "stage2"])) as taps:
        with pytest.raises(ValueError, match="tap 'stem' has seen nothing since it was last read"):
            taps.take()
        model(x)
        features = taps.take()
        assert list(features) == ["stem", "stage2"]
        assert torch.equal(features["stem"], model.stem(x))
    model(x)
    with pytest.raises(ValueError, match="has seen nothing"):
        taps.take()


def test_unknown_names(tiny: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="TinyResNet has no module 'layer9' to tap"):
        TapSet(tiny(), ["layer9"])


def test_unwrapping(tiny: Callable[..., nn.Module]) -> None:
    model = tiny()
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(torch.compile(model)) is model
