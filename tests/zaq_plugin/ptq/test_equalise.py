"""Equalisation: the function stays, ranges meet, and what cannot be done is said."""

from collections.abc import Callable

import pytest
import torch
from networks import Net, perturb
from torch import Tensor, nn
from torch.nn import functional as F

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.ptq.channels import (
    BoundedReLU,
    input_ranges,
    linear_response,
    output_ranges,
    scale_inputs,
)
from zaq_plugin.ptq.equalise import absorb_bias, equalise
from zaq_plugin.ptq.fold import Normal, remembered_statistics, rescaled


class Functional(nn.Module):
    """ReLU6 as a function, and one ReLU6 module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 1)
        self.d, self.act = nn.Linear(4, 5), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.b(F.relu6(self.a(x))))
        x = self.act(self.c(F.max_pool2d(x, 2)))
        return self.d(x.mean((2, 3)))


def uneven(model: nn.Module) -> nn.Module:
    """Channels of very different ranges, as training leaves them; biases that reach the bounds."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            factor = torch.randn(module.weight.shape[axis], generator=generator).mul(1.5).exp()
            shape = [1] * module.weight.dim()
            shape[axis] = -1
            module.weight.data *= factor.reshape(shape)
            if module.bias is not None:
                module.bias.data += 2 * torch.randn(module.bias.shape, generator=generator)
    return model.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 1)
    ),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU6(),
        nn.Conv2d(6, 8, 1),
    ),
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Dropout(),
        nn.Conv2d(6, 4, 1),
    ),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 6, 3, groups=1), nn.ReLU(), nn.ConvTranspose2d(6, 8, 3, groups=2),
        nn.ReLU(), nn.Conv2d(8, 4, 1),
    ),
    "flattened": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(5 * 9, 7), nn.ReLU(), nn.Linear(7, 4, bias=False),
    ),
    "functional": Functional,
}  # fmt: skip


@pytest.mark.parametrize("name", list(MODELS))
def test_the_function_stays_and_ranges_meet(name: str) -> None:
    torch.manual_seed(0)
    model = uneven(MODELS[name]())
    before = {n: p.clone() for n, p in model.named_parameters()}
    x = torch.randn(4, 3, 14, 14)
    done = equalise(model, (x,), iterations=100, tolerance=1e-6)
    assert len(done.pairs) >= 2
    torch.testing.assert_close(done.model(x), model(x), rtol=2e-4, atol=2e-4)
    for pair in done.pairs:
        first, second = done.model.get_submodule(pair.first), done.model.get_submodule(pair.second)
        r1, r2 = output_ranges(first), input_ranges(second)
        r2 = r2.reshape(len(r1), -1).amax(1)
        torch.testing.assert_close(r1, r2, rtol=1e-3, atol=1e-12)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters()), "model touched"


def test_one_pair_by_the_paper_s_formula() -> None:
    torch.manual_seed(0)
    model = uneven(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3)))
    w1, w2 = model[0].weight.detach().double(), model[2].weight.detach().double()
    done = equalise(model)
    for i in range(6):
        r1, r2 = w1[i].abs().max(), w2[:, i].abs().max()
        s = (r1 * r2).sqrt() / r2
        assert float(done.factors["0"][i]) == pytest.approx(float(s), rel=1e-6)
        torch.testing.assert_close(done.model[0].weight[i].double(), w1[i] / s)
        torch.testing.assert_close(done.model[2].weight[:, i].double(), w2[:, i] * s)


def test_relu6_is_replaced_on_request_only() -> None:
    model = uneven(MODELS["plain"]())
    bounded, replaced = equalise(model).model, equalise(model, replace_relu6=True).model
    assert isinstance(bounded[3], BoundedReLU)
    assert isinstance(replaced[3], nn.ReLU)
    x = 3 * torch.randn(4, 3, 14, 14)
    assert not torch.allclose(replaced(x), model(x), rtol=1e-2)


def test_equalising_twice_changes_nothing_more() -> None:
    model = uneven(MODELS["depthwise"]())
    once = equalise(model, iterations=200, tolerance=1e-7)
    twice = equalise(once.model)
    assert all(float((f - 1).abs().max()) < 1e-4 for f in twice.factors.values())


def test_residual_sums_are_left_alone_with_their_reason() -> None:
    torch.manual_seed(0)
    model = fold_batch_norm(perturb(Net(5)))
    done = equalise(model)
    assert [(p.first, p.second) for p in done.pairs] == [("block.conv1", "block.conv2")]
    assert done.skipped["stem.0"] == "its output is used 2 times"
    assert done.skipped["block.conv2"] == "'add' stands behind it"
    assert done.skipped["fc"] == "its output is the model's"


def test_nothing_to_equalise_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to equalise in Sequential: .*'sigmoid' stands"):
        equalise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1)))


def test_a_model_that_cannot_be_traced_is_exported() -> None:
    class Checks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = uneven(MODELS["plain"]())

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] > 100:
                return x
            return self.body(x) * (1 if bool(torch.tensor(x.dim() == 4)) else 2)

    model, x = Checks().eval(), torch.randn(4, 3, 14, 14)
    with pytest.raises(ValueError, match="give example_inputs"):
        equalise(model)
    done = equalise(model, (x,))
    assert len(done.pairs) == 2
    torch.testing.assert_close(done.model(x), model(x), rtol=2e-4, atol=2e-4)


def test_absorbed_biases_keep_the_function_where_inputs_stay_above() -> None:
    torch.manual_seed(0)
    convs = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 4, 1)
    ).eval()
    convs[1].bias.data = torch.tensor([5.0, 0.5, -1.0, 4.0, 8.0, 0.0])
    convs[1].weight.data = torch.tensor([0.5, 0.5, 1.0, 0.25, 0.5, 0.0])
    folded = fold_batch_norm(convs)
    done = equalise(folded)
    remembered = rescaled(remembered_statistics(convs, folded), done.factors)
    before = done.model[0].bias.detach().double().clone()
    absorb_bias(done, remembered)
    s = done.factors["0"]
    deviation = convs[1].weight.detach().double() * (1 / (1 + 1e-5)) ** 0.5
    expected = (convs[1].bias.detach().double() - 3 * deviation).clamp(min=0).clamp(max=6) / s
    torch.testing.assert_close(done.absorbed["0"], expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(before - done.model[0].bias.double(), expected, rtol=1e-4, atol=1e-5)
    x = torch.rand(8, 3, 5, 5) * 0.2  # channels stay within three deviations
    pre = folded[0](x).transpose(0, 1).flatten(1)
    inside = pre.amin(1) >= (expected * s - 1e-4)
    assert bool((inside | (expected == 0)).all())
    torch.testing.assert_close(done.model(x), convs(x), rtol=1e-4, atol=1e-4)


def test_absorption_needs_kernels_of_one_position_unless_told() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    statistics = {"0": Normal(torch.full((6,), 5.0).double(), torch.ones(6).double())}
    done = equalise(model)
    absorb_bias(done, dict(statistics))
    assert not done.absorbed
    absorb_bias(done, dict(statistics), borders=True)
    torch.testing.assert_close(done.absorbed["0"], torch.full((6,), 2.0).double())


@pytest.mark.parametrize("layer", [
    nn.Conv2d(6, 8, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 9, 3, groups=3),
    nn.ConvTranspose2d(6, 8, 3, groups=2), nn.Linear(6, 5),
], ids=lambda m: f"{type(m).__name__}-{getattr(m, 'groups', 1)}")  # fmt: skip
def test_the_answer_to_constant_inputs_is_the_layer_s_own(layer: nn.Module) -> None:
    mean = torch.arange(6).double() - 2
    layer = layer.double()
    response = linear_response(layer, layer.weight.detach(), mean)
    x = mean.reshape(1, 6, 1, 1).expand(1, 6, 9, 9)
    with torch.no_grad():
        y = layer(mean) if isinstance(layer, nn.Linear) else layer(x)[0, :, 4, 4]
        scale_inputs(layer, mean)
        ones = torch.ones(6).double()
    torch.testing.assert_close(response, y - layer.bias.detach())
    torch.testing.assert_close(linear_response(layer, layer.weight.detach(), ones), response)
