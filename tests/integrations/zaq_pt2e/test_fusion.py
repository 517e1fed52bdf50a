"""BatchNorm is folded where that is right, and stays where it is not; always the same function."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from networks import perturb
from pt2e_routes import finish, float_check, prepare, sqnr
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from zaq_plugin.pwlq import UniformSpec, quantize
from zaq_pt2e import PWLQQuantizer, audit, freeze_ranges, set_training
from zaq_pt2e.graph import constant_value, layers

ELSEWHERE = "its BatchNorm stays float: the layer's output is used elsewhere, too"

slow = pytest.mark.slow  # the host exports a hundred patterns where BatchNorm is trained


def both(kind: type[nn.Module], *marks: pytest.MarkDecorator) -> list[object]:
    """A network without and with training."""
    name = kind.__name__
    training = pytest.param(kind, True, id=f"{name}-qat", marks=marks)
    return [pytest.param(kind, False, id=f"{name}-ptq"), training]


class Skip(nn.Module):
    """A convolution whose output is added to what its BatchNorm makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.out(y + torch.relu(self.bn(y)))


class Feature(nn.Module):
    """A convolution whose output is returned beside what its BatchNorm makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        return y, torch.relu(self.bn(y))


class TwoNorms(nn.Module):
    """Two BatchNorms behind one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.a, self.b = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.out(torch.relu(self.a(y)) + torch.sigmoid(self.b(y)))


class LinearSkip(nn.Module):
    """A linear layer whose output goes past its BatchNorm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.out = nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x[:, :, :4, :4].flatten(1))
        return self.out(y - torch.relu(self.bn(y)))


@pytest.mark.parametrize(
    ("kind", "qat"),
    both(Skip) + both(Feature, slow) + both(TwoNorms, slow) + both(LinearSkip, slow),
)
def test_a_norm_whose_layer_is_used_elsewhere_stays(
    kind: type[nn.Module], qat: bool, images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    model = perturb(kind())
    prepared = prepare(model, images, export, qat)
    assert float_check(prepared, model, images) > 100
    converted = finish(prepared, images)
    assert sqnr(model(images), converted(images)) > 22
    record = audit(converted)["stem"]
    assert record.quantized
    assert ELSEWHERE in record.reason


class Twice(nn.Module):
    """One convolution and one BatchNorm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bn(self.conv(x)) - 0.5 * self.bn(self.conv(x.flip(-1))))


class Levels(nn.Module):
    """A head that levels share, each with a BatchNorm of its own."""

    names = ("conv", "conv.call_2")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3), nn.AvgPool2d(2)
        self.bns = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bns[0](self.conv(x)), self.bns[1](self.conv(self.pool(x)))


class Siamese(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(3, 8, 3, bias=False)
        self.b.weight = self.a.weight
        self.bn_a, self.bn_b = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn_a(self.a(x))) + self.bn_b(self.b(x.flip(-1)))


class Chunks(nn.Module):
    """One convolution over slices of its input, one slice without BatchNorm."""

    names = ("conv", "conv.call_2")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = x.flatten(2).chunk(3, -1)
        return torch.cat([self.bn(self.conv(a)), self.conv(b), self.bn(self.conv(c))], -1)


class LinearHeads(nn.Module):
    """A linear layer that is called twice, with a BatchNorm for each call."""

    names = ("fc", "fc.call_2")

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.a, self.b = nn.Linear(27, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x[:, :, :3, :3].flatten(1), x[:, :, 3:6, 3:6].flatten(1)
        return torch.relu(self.a(self.fc(left))) - self.b(self.fc(right))


@pytest.mark.parametrize(
    ("kind", "qat"),
    both(Twice, slow) + both(Levels) + both(Siamese, slow) + both(Chunks, slow) + both(LinearHeads),
)
def test_a_weight_behind_several_norms_is_folded_for_each(
    kind: type[nn.Module], qat: bool, images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    model = perturb(kind())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = prepare(model, images, export, qat)
    assert float_check(prepared, model, images) > 100
    converted = finish(prepared, images)
    assert sqnr(model(images), converted(images)) > 22
    assert not [n for n in converted.graph.nodes if "batch_norm" in str(n.target)]
    records = audit(converted)
    assert not records.skipped
    names = {r.name for r in records.quantized}
    assert names >= set(getattr(kind, "names", ()))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_uses_of_one_weight_have_names_and_take_settings_by_their_layer(
    images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    records = audit(prepare(perturb(Siamese()), images, export, False))
    assert {r.name for r in records} == {"a", "b"}
    narrow = UniformSpec(4, "symmetric")
    quantizer = PWLQQuantizer(UniformSpec(7, "symmetric"), overrides={"con*": narrow})
    records = audit(prepare(perturb(Levels()), images, export, False, quantizer))
    assert {r.name: r.mac_bits for r in records} == {"conv": 4, "conv.call_2": 4}
    quantizer = PWLQQuantizer(exclude=["conv"])
    with pytest.raises(ValueError, match=r"conv\.call_2 \(Conv2d\): excluded by 'conv'"):
        prepare(perturb(Levels()), images, export, False, quantizer)


def test_one_weight_with_one_norm_stays_one_tensor(
    images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    prepared = prepare(perturb(Twice()), images, export, False)
    first, second, _ = layers(prepared)
    assert first.node.args[1] is second.node.args[1]
    assert {layer.name for layer in (first, second)} == {"conv"}


def depthwise(dims: int, groups: int, bias: bool = True) -> nn.Module:
    """A transposed convolution in groups, from 8 to 8 channels, between two convolutions."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    return nn.Sequential(
        conv(3, 8, 1),
        nn.ReLU(),
        up(8, 8, 2, 2, groups=groups, bias=bias),
        norm(8, eps=1e-3),
        nn.ReLU(),
        conv(8, 4, 1),
    )


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions_in_groups_take_their_norm_in(
    dims: int, groups: int, qat: bool, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    model = perturb(depthwise(dims, groups, bias=dims != 2))
    x = torch.randn(6, 3, *[5] * dims)
    prepared = prepare(model, x, export, qat)
    assert float_check(prepared, model, x) > 100
    converted = finish(prepared, x)
    assert sqnr(model(x), converted(x)) > 22
    assert not [n for n in converted.graph.nodes if "batch_norm" in str(n.target)]
    shared = "channels at the same place in each group share a grid" in audit(converted)["2"].reason
    assert shared is (groups == 2)


@torch.no_grad()
def test_a_depthwise_transposed_convolution_has_a_grid_for_each_channel(
    export: Callable[..., object],
) -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(6, 6, 3, 2, groups=6, bias=False).eval()
    up.weight *= 10 ** torch.linspace(-3, 1, 6).reshape(-1, 1, 1, 1)
    x = torch.randn(6, 6, 5, 5)
    converted = finish(prepare(nn.Sequential(up), x, export, False), x)
    (layer,) = layers(converted)
    got = constant_value(converted, layer.node.args[1])
    for channel, row in enumerate(up.weight):
        alone = quantize(row.unsqueeze(0), UniformSpec(7, "symmetric"), 0).dequantize()
        assert torch.equal(got[channel], alone[0])


class BatchStatistics(nn.Module):
    """BatchNorm that normalises by its batch in evaluation, too."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.bn = nn.BatchNorm2d(8, affine=affine, track_running_stats=False, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.bn(self.conv(x))))


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("affine", [False, True])
def test_a_norm_without_running_statistics_stays(
    affine: bool, qat: bool, images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    model = BatchStatistics(affine)
    if affine:
        nn.init.normal_(model.bn.weight)
        nn.init.normal_(model.bn.bias)
    model.eval()
    prepared = prepare(model, images, export, qat)
    for training in (True, False):
        set_training(prepared, training)
        assert float_check(prepared, model, images) > 100
    converted = finish(prepared, images)
    assert sqnr(model(images), converted(images)) > 22
    for batch in images.split(3):
        assert sqnr(model(batch), converted(batch)) > 22
    assert "its BatchNorm stays float: it keeps no running statistics" in (
        audit(converted)["conv"].reason
    )


def test_a_norm_over_another_axis_stays(export: Callable[..., object]) -> None:
    """A linear layer works on the last axis, BatchNorm on the second."""
    torch.manual_seed(0)
    model = perturb(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(7, 4)))
    x = torch.randn(6, 3, 5)
    prepared = prepare(model, x, export, False)
    assert float_check(prepared, model, x) > 100
    reason = audit(finish(prepared, x))["0"].reason
    assert "its BatchNorm stays float: it normalises another axis" in reason


def test_a_norm_that_folds_to_no_finite_weight_stays(
    images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    model = perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    nn.init.constant_(model[1].weight, 1e38)
    nn.init.constant_(model[0].weight, 1e3)
    records = audit(prepare(model, images, export, False))
    assert "its BatchNorm stays float: the folded weight or bias" in records["0"].reason


@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
def test_one_norm_that_two_eps_share(
    qat: bool, images: Tensor, export: Callable[..., object]
) -> None:
    class TwoEps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            bn = self.bn
            tensors = bn.running_mean, bn.running_var, bn.weight, bn.bias
            a = nn.functional.batch_norm(self.a(x), *tensors, eps=1e-1)
            return a + nn.functional.batch_norm(self.b(x), *tensors, eps=1e-3).relu()

    torch.manual_seed(0)
    model = perturb(TwoEps())
    assert float_check(prepare(model, images, export, qat), model, images) > 100


def test_a_shared_convolution_trains_and_converts_to_what_was_trained(
    images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    prepared = prepare(perturb(Levels()), images, export, True)
    set_training(prepared, True)
    prepared(images)
    freeze_ranges(prepared)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.02)
    for _ in range(2):
        optimizer.zero_grad()
        sum(y.square().mean() for y in prepared(images)).backward()
        optimizer.step()
    set_training(prepared, False)
    with torch.no_grad():
        expected = prepared(images)
        converted = convert_pt2e(prepared)
        for right, got in zip(expected, converted(images), strict=True):
            assert (right - got).abs().max() <= 1e-5


class Sized(nn.Module):
    """Reads the size of a convolution's output, which BatchNorm does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(400, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.fc(torch.relu(self.bn(y)).reshape(y.shape[0], -1))


def test_who_reads_the_size_alone_is_no_reader(
    images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    model = perturb(Sized())
    prepared = prepare(model, images, export, False)
    assert float_check(prepared, model, images) > 100
    assert not [n for n in prepared.graph.nodes if "batch_norm" in str(n.target)]
    assert sqnr(model(images[:3]), finish(prepared, images)(images[:3])) > 22


def test_decomposed_batch_norm_is_folded_as_well(
    images: Tensor, export: Callable[..., object]
) -> None:
    torch.manual_seed(0)
    model = perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    graph = export(model, images)
    (norm,) = [n for n in graph.graph.nodes if "batch_norm" in str(n.target)]
    x, gamma, beta, mean, var, _, momentum, eps, _ = norm.args
    with graph.graph.inserting_before(norm):
        target = torch.ops.aten._native_batch_norm_legit_no_training.default
        parts = graph.graph.call_function(target, (x, gamma, beta, mean, var, momentum, eps))
        first = graph.graph.call_function(operator.getitem, (parts, 0))
    norm.replace_all_uses_with(first)
    graph.graph.erase_node(norm)
    graph.recompile()
    prepared = prepare_pt2e(graph, PWLQQuantizer(UniformSpec(7, "symmetric"), 7))
    assert float_check(prepared, model, images) > 100
    assert not [n for n in prepared.graph.nodes if "batch_norm" in str(n.target)]
