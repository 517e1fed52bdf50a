"""Models whose root NNCF cannot wrap, layers called twice, weights that are shared or loose."""

import pytest
import torch
from torch import Tensor, nn

import zaq_nncf
from zaq_plugin import PWLQSpec

FAST = PWLQSpec(bits=4, policy="gaussian")


@pytest.fixture
def sequence() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 4),
    ).eval()


def test_a_sequential_gets_a_root(sequence: nn.Module, images: Tensor) -> None:
    student = zaq_nncf.quantize(sequence, [images], FAST, overrides={"0": PWLQSpec(bits=3)})
    bits = {r.name: r.mac_bits for r in zaq_nncf.audit(student)}
    assert bits == {"model.0": 3, "model.4": 4}
    assert torch.equal(zaq_nncf.strip(student)(images), student(images))
    assert torch.allclose(zaq_nncf.twin(student)(images), sequence(images), atol=1e-5)


def test_overrides_reach_into_the_root(sequence: nn.Module, images: Tensor) -> None:
    six, three = PWLQSpec(bits=6, policy="gaussian"), PWLQSpec(bits=3, policy="gaussian")
    for overrides in ({nn.Linear: six, nn.Sequential: three}, {"model.4": six, "*": three}):
        student = zaq_nncf.quantize(sequence, [images], FAST, overrides=overrides)
        assert {r.name: r.mac_bits for r in zaq_nncf.audit(student)} == {"model.0": 3, "model.4": 6}


def test_a_traced_graph_gets_a_root(net: nn.Module, images: Tensor) -> None:
    student = zaq_nncf.quantize(torch.fx.symbolic_trace(net), [images], FAST)
    assert torch.equal(student(images), zaq_nncf.quantize(net, [images], FAST)(images))


def test_an_exported_graph_is_refused(net: nn.Module, images: Tensor) -> None:
    exported = torch.export.export(net, (images,)).module()
    with pytest.raises(TypeError, match="quantize the graph with zaq_pt2e"):
        zaq_nncf.quantize(exported, [images], FAST)


def test_a_quantized_model_is_refused(quantized: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match="is wrapped by NNCF already; pass the float model"):
        zaq_nncf.quantize(quantized, [images], FAST)


class Odd(nn.Module):
    """A layer called twice, a shared weight, weights without a layer, one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.loose = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2)
        self.fc = nn.Linear(4, 4)
        self.same = nn.Linear(4, 4)
        self.same.weight = self.fc.weight
        self.product = nn.Parameter(torch.randn(4, 5))
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.relu(self.conv(x)))
        x = self.up(nn.functional.conv2d(x, self.loose))
        x = self.same(torch.relu(self.fc(x.mean((2, 3)))))
        return x @ self.product


def test_every_weight_is_counted_once(images: Tensor) -> None:
    torch.manual_seed(0)
    model = Odd().eval()
    student = zaq_nncf.quantize(model, [images], FAST)
    stripped = zaq_nncf.strip(student)
    for records in (zaq_nncf.audit(student), zaq_nncf.audit(stripped)):
        numel = {r.name: r.numel for r in records}
        assert numel == {
            "conv": 81,
            "fc": 16,
            "same": 0,
            "up": 32,
            "unused": 9,
            "loose": 108,
            "product": 20,
        }
        assert [r.name for r in records.skipped] == ["unused"]
        assert records["unused"].reason == "never called on the calibration data"
        assert "shares its weight with 'fc'" in records["same"].reason
        assert all(r.sqnr_db < 60 for r in records.quantized if r.numel)
    assert torch.equal(stripped(images), student(images))
    # Biases are given back once each, though two quantizers know of one.
    assert torch.allclose(zaq_nncf.twin(student)(images), model(images), atol=1e-6)
