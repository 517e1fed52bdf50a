"""Networks that call a layer twice: the rest is reconstructed, and the notes say what is not."""

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.strategies import Request, apply


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 8, 3)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.head(x)).mean((2, 3)) - torch.relu(self.head(x.flip(-1))).amax((2, 3))
        return self.last(x)


@pytest.mark.parametrize("name", ["adaround", "brecq", "zaq"])
def test_what_is_called_once_is_reconstructed(name):
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(32, 3, 8, 8)
    request = Request(5, 8, example_inputs=(x[:2],), synthetic=x, synthetic_count=32, effort=0.05)
    applied = apply(name, model, request)
    notes = [note for note in applied.notes if note.startswith("not reconstructed")]
    assert notes == ["not reconstructed: head (it is called 2 times)"]
    right, got = model(x), applied.model(x)
    assert float((got - right).square().mean() / right.square().mean()) < 0.1
    assert all(record.quantized for record in applied.layers)
