"""BatchNorm behind transposed convolutions, whatever their groups and channels, in every form."""

import itertools

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zaq_plugin import UniformSpec
from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import calibrate, fold_batch_norm, quantized_tensors, simulate
from zaq_plugin.ptq.equalise import equalise
from zaq_plugin.pwlq import sqnr_db

SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (2, 3)]
"""Input and output channels of a group."""
GROUPS = [1, 2, 4]


class Net(nn.Module):
    def __init__(self, layer: nn.Module, norm: nn.Module, functional: bool = False) -> None:
        super().__init__()
        self.layer, self.norm, self.functional = layer, norm, functional
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.3, 3)
        nn.init.uniform_(norm.weight, 0.3, 3)
        nn.init.normal_(norm.bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if not self.functional:
            return self.norm(self.layer(x))
        x = F.conv_transpose2d(
            x, self.layer.weight, self.layer.bias, self.layer.stride, groups=self.layer.groups
        )
        norm = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


@pytest.mark.parametrize(("size", "groups"), list(itertools.product(SIZES, GROUPS)))
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_every_grouping(size, groups, bias):
    torch.manual_seed(0)
    inputs, outputs = size[0] * groups, size[1] * groups
    norm = nn.BatchNorm2d(outputs)
    layer = nn.ConvTranspose2d(inputs, outputs, 3, 2, groups=groups, bias=bias)
    x = torch.randn(2, inputs, 5, 4)
    for functional in (False, True):
        model = Net(layer, norm, functional).eval()
        forms = [fx.symbolic_trace(model), torch.export.export(model, (x,)).module()]
        for form in [*forms, *([] if functional else [model])]:
            folded = fold_batch_norm(form)
            assert len(folded.zaq_folding.folded) == 1, folded.zaq_folding
            assert sqnr_db(model(x), folded(x)) > 110


@pytest.mark.parametrize(
    ("kind", "norm", "shape"),
    [
        (nn.ConvTranspose1d, nn.BatchNorm1d, (2, 4, 7)),
        (nn.ConvTranspose3d, nn.BatchNorm3d, (2, 4, 3, 4, 3)),
    ],
)
@torch.no_grad()
def test_other_dimensions(kind, norm, shape):
    torch.manual_seed(0)
    for groups in (1, 2, 4):
        model, x = Net(kind(4, 8, 3, groups=groups), norm(8)), torch.randn(shape)
        folded = fold_batch_norm(model)
        assert isinstance(folded.norm, nn.Identity)
        assert sqnr_db(model(x), folded(x)) > 110


@pytest.mark.parametrize("groups", GROUPS)
@torch.no_grad()
def test_simulated_and_equalised(groups):
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(8, 8, 3, 2, groups=groups)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), Net(up, nn.BatchNorm2d(8)), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()
    x = torch.randn(4, 3, 6, 5)
    folded = fold_batch_norm(model)
    done = equalise(folded, (x,))
    assert len(done.pairs) == 2
    assert sqnr_db(model(x), done.model(x)) > 110
    student = simulate(
        folded, UniformSpec(7, "symmetric"), 8, observer=MinMaxObserver, depthwise="as-told"
    )
    calibrate(student, [x])
    assert set(quantized_tensors(student)) == {"0", "2.layer", "4"}
    assert sqnr_db(model(x), student(x)) > 30


@pytest.mark.parametrize("kernel", [1, 3])
@torch.no_grad()
def test_channels_last_folds_to_the_same_numbers(kernel):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, kernel, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
    )
    nn.init.uniform_(plain[1].running_var, 0.3, 3)
    plain.eval()
    x = torch.randn(2, 3, 6, 6)
    right = fold_batch_norm(plain)
    last = fold_batch_norm(plain.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last[0].weight, right[0].weight, rtol=0, atol=0)
    torch.testing.assert_close(last(x), right(x), rtol=1e-5, atol=1e-6)
    assert sqnr_db(right(x), equalise(last, (x,)).model(x)) > 100
