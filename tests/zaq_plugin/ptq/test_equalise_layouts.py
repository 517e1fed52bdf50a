"""Equalisation where axes move between two layers: exact, or left alone with a reason."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq_plugin.ptq.equalise import absorb_bias, equalise
from zaq_plugin.ptq.fold import Normal
from zaq_plugin.pwlq import sqnr_db

Between = Callable[[Tensor], Tensor]
IMAGES = (4, 3, 8, 6)
"""Convolutions below make (4, 8, 8, 6) of them."""
TOKENS = (4, 5, 3)
"""Linear layers below make (4, 5, 8) of them."""


class Pair(nn.Module):
    """Two layers with something between."""

    def __init__(self, first: nn.Module, between: Between, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.between = between if isinstance(between, nn.Module) else None
        self.function = None if isinstance(between, nn.Module) else between
        with torch.no_grad():
            for layer in (first, second):
                axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
                shape = [1] * layer.weight.dim()
                shape[axis] = -1
                layer.weight.mul_((3 * torch.rand(layer.weight.shape[axis]) + 0.1).reshape(shape))
            second.weight.mul_(4 * torch.rand(second.weight.shape) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.between(x) if self.between is not None else self.function(x)
        return self.second(x)


def conv(outputs: int = 8) -> nn.Module:
    return nn.Conv2d(3, outputs, 3, padding=1)


CONNECTED = {
    "flatten(1)": (conv, nn.Flatten(), lambda: nn.Linear(8 * 48, 5)),
    "flatten(-3)": (conv, lambda x: x.flatten(-3), lambda: nn.Linear(8 * 48, 5)),
    "flatten(2) and a one-dimensional layer": (
        conv, nn.Flatten(2), lambda: nn.Conv1d(8, 5, 3)),
    "view(batch, -1)": (conv, lambda x: x.view(x.size(0), -1), lambda: nn.Linear(8 * 48, 5)),
    "view(shape, -1)": (conv, lambda x: x.view(x.shape[0], -1), lambda: nn.Linear(8 * 48, 5)),
    "view(-1, n)": (conv, lambda x: x.view(-1, 384), lambda: nn.Linear(384, 5)),
    "reshape((-1, n))": (conv, lambda x: torch.reshape(x, (-1, 384)), lambda: nn.Linear(384, 5)),
    "view that splits positions": (
        conv, lambda x: x.view(4, 8, 4, 12), lambda: nn.Conv2d(8, 5, 3)),
    "view that groups channels by two images": (
        conv, lambda x: x.reshape(2, 768), lambda: nn.Linear(768, 5)),
    "adaptive pooling to 1": (
        conv, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), lambda: nn.Linear(8, 5)),
    "adaptive pooling to 2x2": (
        conv, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), lambda: nn.Linear(32, 5)),
    "pooling, squeezed": (
        conv, lambda x: F.adaptive_max_pool2d(x, 1).squeeze(-1).squeeze(-1),
        lambda: nn.Linear(8, 5)),
    "mean over positions": (conv, lambda x: x.mean((2, 3)), lambda: nn.Linear(8, 5)),
    "mean over positions, kept": (
        conv, lambda x: x.mean([-1, -2], keepdim=True), lambda: nn.Conv2d(8, 5, 1)),
    "mean over rows": (conv, lambda x: x.mean(2), lambda: nn.Conv1d(8, 5, 3)),
    "transposed": (
        lambda: nn.ConvTranspose2d(3, 8, 3, padding=1), nn.Flatten(), lambda: nn.Linear(384, 5)),
    "tokens": (lambda: nn.Linear(3, 8), nn.Identity(), lambda: nn.Linear(8, 5)),
    "tokens, flattened": (lambda: nn.Linear(3, 8), nn.Flatten(), lambda: nn.Linear(40, 5)),
    "tokens, flattened to rows": (
        lambda: nn.Linear(3, 8), lambda x: x.flatten(0, 1), lambda: nn.Linear(8, 5)),
    "tokens, mean over them": (
        lambda: nn.Linear(3, 8), lambda x: x.mean(1), lambda: nn.Linear(8, 5)),
    "tokens, padded": (
        lambda: nn.Linear(3, 8), lambda x: F.pad(x, (0, 0, 1, 1)), lambda: nn.Linear(8, 5)),
    "tokens through ReLU6": (lambda: nn.Linear(3, 8), nn.ReLU6(), lambda: nn.Linear(8, 5)),
    "ReLU6, flattened": (
        conv, lambda x: F.relu6(x).flatten(1), lambda: nn.Linear(384, 5)),
}  # fmt: skip
NEED_SHAPES = {
    "view(-1, n)",
    "reshape((-1, n))",
    "view that splits positions",
    "view that groups channels by two images",
    "pooling, squeezed",
    "tokens, flattened to rows",
    "tokens, mean over them",
}
LEFT_ALONE = {
    "flatten(2)": (conv, nn.Flatten(2), lambda: nn.Linear(48, 5), "not what the next layer sums"),
    "as many positions as channels": (
        lambda: conv(48), nn.Flatten(2), lambda: nn.Linear(48, 5), "not what the next layer sums"),
    "flatten(0)": (
        conv, lambda x: x.flatten(0, 1), lambda: nn.Linear(6, 5), "not what the next layer"),
    "view that splits channels": (
        conv, lambda x: x.view(4, 4, 2, 48), lambda: nn.Conv2d(4, 5, 1), "splits or mixes"),
    "view to rows": (
        conv, lambda x: x.reshape(-1, 6), lambda: nn.Linear(6, 5), "not what the next"),
    "pixel shuffle": (conv, nn.PixelShuffle(2), lambda: nn.Conv2d(2, 5, 1), "pixelshuffle"),
    "permuted": (
        conv, lambda x: x.permute(0, 2, 3, 1), lambda: nn.Linear(8, 5), "'permute' stands behind"),
    "transposed tokens": (
        lambda: nn.Linear(3, 8), lambda x: x.transpose(1, 2), lambda: nn.Linear(5, 5), "transpose"),
    "mean over channels": (
        conv, lambda x: x.mean(1), lambda: nn.Conv1d(8, 5, 1), "a mean over other axes"),
    "mean over everything else": (
        conv, lambda x: x.mean((0, 1)), lambda: nn.Linear(6, 5), "a mean over other axes"),
    "mean over tokens' features": (
        lambda: nn.Linear(3, 8), lambda x: x.mean(-1), lambda: nn.Linear(5, 5), "a mean over"),
    "chunk": (
        conv, lambda x: torch.chunk(x, 2, 1)[0], lambda: nn.Conv2d(4, 5, 1), "'chunk' stands"),
    "cat": (conv, lambda x: torch.cat([x, x], 1), lambda: nn.Conv2d(16, 5, 1), "'cat' stands"),
    "padded channels": (
        conv, lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), lambda: nn.Conv2d(10, 5, 1),
        "a padding of the channels' own axis"),
    "padded features": (
        lambda: nn.Linear(3, 8), lambda x: F.pad(x, (1, 1)), lambda: nn.Linear(10, 5),
        "a padding of the channels' own axis"),
    "features pooled": (
        lambda: nn.Linear(3, 8), nn.MaxPool2d(1, 1), lambda: nn.Linear(8, 5), "a pooling over"),
    "bounded behind a flatten": (
        conv, lambda x: F.relu6(x.flatten(1)), lambda: nn.Linear(384, 5), "a bounded activation"),
    "tokens as an image": (
        lambda: nn.Linear(3, 8), lambda x: x, lambda: nn.Conv1d(5, 5, 1), "not what the next"),
}  # fmt: skip


def build(case: tuple) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Pair(case[0](), case[1], case[2]()).eval()
    return model, torch.randn(TOKENS if isinstance(model.first, nn.Linear) else IMAGES)


@pytest.mark.parametrize("name", CONNECTED)
@torch.no_grad()
def test_a_pair_whose_channels_can_be_followed_is_equalised_exactly(name):
    model, x = build(CONNECTED[name])
    done = equalise(model, (x,))
    assert [(p.first, p.second) for p in done.pairs] == [("first", "second")]
    assert not torch.allclose(done.model.second.weight, model.second.weight, rtol=0.1)
    assert sqnr_db(model(x), done.model(x)) > 110
    if "images" not in name and "n)" not in name and "splits" not in name:
        other = torch.randn(7, *x.shape[1:])
        assert sqnr_db(model(other), done.model(other)) > 110


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_any_other_pair_is_left_alone_with_the_reason(name):
    model, x = build(LEFT_ALONE[name])
    model(x)
    with pytest.raises(ValueError, match="nothing to equalise in Pair") as caught:
        equalise(model, (x,))
    assert LEFT_ALONE[name][3] in str(caught.value)


@pytest.mark.parametrize("name", [*CONNECTED, *LEFT_ALONE])
@torch.no_grad()
def test_without_shapes_it_is_exact_too_or_left_alone(name):
    model, x = build((CONNECTED | LEFT_ALONE)[name])
    if name in LEFT_ALONE or name in NEED_SHAPES:
        with pytest.raises(ValueError, match="nothing to equalise in Pair"):
            equalise(model)
    else:
        assert sqnr_db(model(x), equalise(model).model(x)) > 110


def test_what_needs_shapes_says_so():
    model, x = build(CONNECTED["view(-1, n)"])
    with pytest.raises(ValueError, match=r"'view' stands behind it, .*give example_inputs"):
        equalise(model)
    with pytest.raises(ValueError, match=r"Pair does not run on the example inputs \(RuntimeError"):
        equalise(model, (x[:, :2],))


@torch.no_grad()
def test_images_without_a_batch():
    model, x = build((conv, lambda x: x.flatten(0), lambda: nn.Linear(384, 5)))
    done = equalise(model, (x[0],))
    assert sqnr_db(model(x[0]), done.model(x[0])) > 110


@torch.no_grad()
def test_other_dimensions():
    for first, x in (
        (nn.Conv1d(3, 8, 3, padding=1), torch.randn(2, 3, 12)),
        (nn.Conv3d(3, 8, 3, padding=1), torch.randn(2, 3, 2, 2, 3)),
    ):
        model = Pair(first, nn.Flatten(), nn.Linear(96, 5)).eval()
        for examples in (None, (x,)):
            assert sqnr_db(model(x), equalise(model, examples).model(x)) > 110


@torch.no_grad()
def test_an_exported_model_is_followed_by_its_shapes():
    class Exported(Pair):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] > 100:  # torch.fx cannot trace it
                return x
            return super().forward(x)

    torch.manual_seed(0)
    for between, second, exact in (
        (nn.Flatten(), nn.Linear(384, 5), True), (nn.Flatten(2), nn.Linear(48, 5), False),
    ):  # fmt: skip
        model, x = Exported(conv(), between, second).eval(), torch.randn(IMAGES)
        if exact:
            assert sqnr_db(model(x), equalise(model, (x,)).model(x)) > 110
        else:
            with pytest.raises(ValueError, match="not what the next layer sums over"):
                equalise(model, (x,))


class Same(nn.Conv2d):
    """A padding of its own; factors pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Saturating(nn.Conv2d):
    """Factors do not pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


@torch.no_grad()
def test_layers_with_their_own_forward_are_tried():
    torch.manual_seed(0)
    x = torch.randn(IMAGES)
    model = Pair(Same(3, 8, 3), nn.Identity(), Same(8, 5, 3)).eval()
    assert sqnr_db(model(x), equalise(model, (x,)).model(x)) > 110
    for first, second in ((Saturating(3, 8, 3), conv(5)), (conv(), Saturating(8, 5, 3))):
        second = nn.Conv2d(8, 5, 3) if isinstance(first, Saturating) else second
        with pytest.raises(ValueError, match="forward of Saturating does not pass a factor"):
            equalise(Pair(first, nn.Identity(), second).eval(), (x,))


def test_what_could_tell_the_difference_is_left_alone():
    class Reads(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.first.weight.sum()

    x = torch.randn(IMAGES)
    with pytest.raises(ValueError, match="a tensor of 'first' is read elsewhere"):
        equalise(Reads(conv(), nn.Identity(), nn.Conv2d(8, 5, 1)).eval(), (x,))
    model = Pair(conv(), nn.Identity(), nn.Conv2d(8, 5, 1)).eval()
    model.first.register_forward_hook(lambda module, args, out: out.tanh())
    with pytest.raises(ValueError, match="'first' has forward hooks"):
        equalise(model, (x,))


@torch.no_grad()
def test_weight_normalised_layers_are_equalised():
    torch.manual_seed(0)
    model, x = build(CONNECTED["flatten(1)"])
    nn.utils.parametrizations.weight_norm(model.first)
    done = equalise(model, (x,))
    assert len(done.pairs) == 1
    assert sqnr_db(model(x), done.model(x)) > 110


@pytest.mark.parametrize("name", ["flatten(1)", "tokens, flattened", "adaptive pooling to 2x2"])
@torch.no_grad()
def test_absorbed_biases_reach_the_features_that_hold_the_channel(name):
    model, x = build(CONNECTED[name])
    model.first.weight.mul_(0.01)
    model.first.bias.copy_(torch.linspace(1, 3, 8))  # every channel stays far above zero
    done = equalise(model, (x,))
    factor = done.factors["first"]
    means = model.first.bias.double() / factor
    statistics = {"first": Normal(means, 0.2 * means)}
    absorb_bias(done, statistics)
    assert float(done.absorbed["first"].min()) > 0
    assert sqnr_db(model(x), done.model(x)) > 100
