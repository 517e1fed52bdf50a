"""Folding keeps the model's function; whatever it cannot keep, it leaves alone and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zaq_plugin import UniformSpec
from zaq_plugin.ptq import simulate
from zaq_plugin.ptq.fold import fold_batch_norm


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affine parameters that a fold cannot get right by leaving them out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, _BatchNorm) or module.running_mean is None:
                continue
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            if module.affine:
                module.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(shape, generator=generator) * 0.2)
    return model.eval()


def relative_error(expected: Tensor, actual: Tensor) -> float:
    return float((expected - actual).abs().max() / expected.abs().max())


def norms_left(model: nn.Module) -> int:
    return sum(isinstance(m, _BatchNorm) for m in model.modules())


@torch.no_grad()
def check_same_function(model: nn.Module, x: Tensor, folded: nn.Module) -> None:
    """Both in float64, so that only the rounding of the folded weights to float32 is left."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert relative_error(model.double()(x.double()), folded.double()(x.double())) < 1e-5
    model.float()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"the user's {key} was changed"


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None)


def timm_model(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


ZOO = [
    ("torchvision", "resnet18", 20, 0),
    ("torchvision", "mobilenet_v2", 52, 0),
    ("timm", "efficientnet_b0", 49, 0),
    ("timm", "tf_efficientnet_lite0", 49, 0),
    ("timm", "densenet121", 59, 62),
]


@pytest.mark.parametrize(("library", "name", "folds", "left"), ZOO, ids=[z[1] for z in ZOO])
def test_zoo_models_keep_their_function(library: str, name: str, folds: int, left: int) -> None:
    torch.manual_seed(0)
    model = perturb(timm_model(name) if library == "timm" else torchvision_model(name))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norm(model)
    assert len(folded.zaq_folding.folded) == folds
    assert len(folded.zaq_folding.kept) == norms_left(folded) == left
    check_same_function(model, x, folded)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "densenet121"])
def test_exported_models_keep_their_function(name: str) -> None:
    torch.manual_seed(0)
    model = perturb(timm_model(name))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exported = torch.export.export(model, (x,)).module()
    folded = fold_batch_norm(exported)
    left = [n for n in folded.graph.nodes if "batch_norm" in str(n.target)]
    reasons = folded.zaq_folding.kept
    assert len(left) == len(reasons) == (62 if name == "densenet121" else 0)
    with torch.no_grad():
        assert relative_error(model(x), folded(x)) < 1e-5
        assert relative_error(model(x), exported(x)) < 1e-6
    assert any("batch_norm" in str(n.target) for n in exported.graph.nodes)


class SamePadding(nn.Module):
    """Control flow on shapes, which torch.fx cannot trace, around a shared and a plain pair."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.shared, self.shared_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.after = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head, self.head_norm = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        missing = max(0, 11 - x.shape[-1])
        if missing > 0:
            x = F.pad(x, [0, missing, 0, missing])
        x = self.norm(self.conv(x)).relu()
        x = self.shared_norm(self.shared(self.shared(x)))
        y = self.twice(x)
        return self.head_norm(self.head((self.after(y) + y).mean((2, 3))))


def test_untraceable_model_goes_through_export() -> None:
    torch.manual_seed(0)
    model, x = perturb(SamePadding()), torch.randn(2, 3, 9, 9)
    with pytest.raises(ValueError, match=r"torch\.fx cannot trace SamePadding .*example_inputs"):
        fold_batch_norm(model)
    folded = fold_batch_norm(model, (x,))
    assert folded.zaq_folding.folded == (("conv", "norm"), ("head", "head_norm"))
    assert "'shared' is called 2 times" in folded.zaq_folding.kept["shared_norm"]
    assert "'twice' is also used elsewhere" in folded.zaq_folding.kept["after"]
    assert isinstance(folded.norm, nn.Identity)
    check_same_function(model, x, folded)


LAYERS: list[tuple[str, Callable[[], nn.Module], type[nn.Module], tuple[int, ...]]] = [
    ("conv1d", lambda: nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d, (2, 4, 9)),
    ("conv2d-bias-free", lambda: nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d, (2, 4, 9, 9)),
    ("conv3d", lambda: nn.Conv3d(4, 6, 3), nn.BatchNorm3d, (2, 4, 5, 5, 5)),
    ("transposed1d", lambda: nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d, (2, 4, 5)),
    (
        "transposed2d-grouped",
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False),
        nn.BatchNorm2d,
        (2, 4, 5, 5),
    ),
    ("transposed3d", lambda: nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d, (2, 4, 3, 3, 3)),
    ("linear", lambda: nn.Linear(4, 6, bias=False), nn.BatchNorm1d, (3, 4)),
]


@pytest.mark.parametrize("route", ["eager", "traced", "exported", "decomposed"])
@pytest.mark.parametrize(
    ("layer", "norm", "shape"), [x[1:] for x in LAYERS], ids=[x[0] for x in LAYERS]
)
def test_every_layer_by_every_route(
    layer: Callable[[], nn.Module], norm: type[nn.Module], shape: tuple[int, ...], route: str
) -> None:
    torch.manual_seed(0)
    model, x = perturb(nn.Sequential(layer(), norm(6), nn.ReLU())), torch.randn(shape)
    if route == "eager":
        folded = fold_batch_norm(model, (x,))
        assert norms_left(folded) == 0
    elif route == "traced":
        traced = fx.symbolic_trace(model)
        fx.passes.shape_prop.ShapeProp(traced).propagate(x)
        folded = fold_batch_norm(traced)
        assert norms_left(folded) == 0
    else:
        program = torch.export.export(model, (x,))
        if route == "decomposed":
            program = program.run_decompositions()
        folded = fold_batch_norm(program.module())
        if route == "decomposed" and shape == (3, 4):
            assert "no convolution or linear layer" in folded.zaq_folding.kept["1"]
            return
        assert not any("batch_norm" in str(n.target) for n in folded.graph.nodes)
    assert len(folded.zaq_folding.folded) == 1
    with torch.no_grad():
        assert relative_error(model(x), folded(x)) < 1e-5


def test_functional_graph() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.register_buffer("mean", torch.randn(4))
            self.register_buffer("var", torch.rand(4) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(F.conv2d(x, self.weight, padding=1), self.mean, self.var, eps=1e-3)

    torch.manual_seed(0)
    model, x = Functional().eval(), torch.randn(2, 3, 8, 8)
    folded = fold_batch_norm(fx.symbolic_trace(model))
    assert len(folded.zaq_folding.folded) == 1
    assert not hasattr(folded, "mean")
    assert relative_error(model(x).detach(), folded(x).detach()) < 1e-5


class Pair(nn.Module):
    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


def test_gamma_of_zero_and_no_affine() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    for norm in (nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)):
        model = perturb(Pair(nn.Conv2d(3, 4, 3), norm))
        if norm.affine:
            nn.init.zeros_(norm.weight)
        folded = fold_batch_norm(model)
        check_same_function(model, x, folded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_memory_layout_stay(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = perturb(Pair(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8))).to(dtype)
    model = model.to(memory_format=torch.channels_last)
    folded = fold_batch_norm(model)
    assert folded.layer.weight.dtype == folded.layer.bias.dtype == dtype
    assert folded.layer.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 8, 8)
    exact = model.double()(x.double()).detach()
    assert relative_error(exact, folded.double()(x.double()).detach()) < torch.finfo(dtype).eps * 2


def test_frozen_and_fused_norms() -> None:
    from timm.layers import BatchNormAct2d
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    frozen = FrozenBatchNorm2d(4)
    frozen.running_mean.fill_(0.3)
    frozen.weight.fill_(1.7)
    frozen.bias.fill_(-0.2)
    model = Pair(nn.Conv2d(3, 4, 3), frozen).eval()
    folded = fold_batch_norm(model)
    assert isinstance(folded.norm, nn.Identity)
    check_same_function(model, x, folded)
    fused = perturb(Pair(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.SiLU)))
    folded = fold_batch_norm(fused)
    assert isinstance(folded.norm, nn.SiLU)
    check_same_function(fused, x, folded)
    traced = fold_batch_norm(fx.symbolic_trace(fused))
    assert len(traced.zaq_folding.folded) == 1
    check_same_function(fused, x, traced)


class AttentiveConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight + x.mean().sigmoid(), self.bias)


def refusals() -> list[tuple[str, nn.Module, str]]:
    torch.manual_seed(0)
    shared = nn.Conv2d(3, 3, 1)
    tied = nn.Conv2d(3, 3, 1)
    other = nn.Conv2d(3, 3, 1)
    other.weight = tied.weight
    hooked = nn.Conv2d(3, 3, 1)
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    quantized = simulate(nn.Sequential(nn.Conv2d(3, 3, 1)), UniformSpec(8), None)[0]
    reused = nn.BatchNorm2d(3)

    class TwoUsers(Pair):
        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y + self.norm(y)

    class ReadsWeight(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.layer.weight.sum()

    return [
        ("called twice", nn.Sequential(shared, nn.ReLU(), shared, nn.BatchNorm2d(3)), "called 2"),
        ("norm called twice", Pair(nn.Sequential(nn.Conv2d(3, 3, 1), reused), reused), "called 2"),
        ("tied", nn.Sequential(other, tied, nn.BatchNorm2d(3)), "shared with another module"),
        ("two users", TwoUsers(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), "also used elsewhere"),
        ("reads", ReadsWeight(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), "is read elsewhere"),
        ("hooks", Pair(hooked, nn.BatchNorm2d(3)), "forward hooks"),
        ("quantized", Pair(quantized, nn.BatchNorm2d(3)), "parametrization"),
        (
            "no statistics",
            Pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
            "track_running_stats=False",
        ),
        ("by its input", Pair(AttentiveConv(3, 3, 3), nn.BatchNorm2d(3)), "not a plain layer"),
        ("no layer", Pair(nn.MaxPool2d(2), nn.BatchNorm2d(3)), "no convolution or linear layer"),
    ]


@pytest.mark.parametrize(
    ("model", "reason"), [r[1:] for r in refusals()], ids=[r[0] for r in refusals()]
)
def test_what_cannot_be_folded_stays_with_its_reason(model: nn.Module, reason: str) -> None:
    perturb(model)
    folded = fold_batch_norm(model)
    assert not folded.zaq_folding.folded
    assert any(reason in text for text in folded.zaq_folding.kept.values()), folded.zaq_folding
    assert norms_left(folded) >= 1
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert relative_error(model(x).detach(), folded(x).detach()) < 1e-5


def test_a_norm_in_training_mode_stays() -> None:
    model = perturb(Pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    model.norm.train()
    assert "in training mode" in fold_batch_norm(model).zaq_folding.kept["norm"]


def test_linear_needs_a_known_rank() -> None:
    model = perturb(Pair(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    assert "give example_inputs" in fold_batch_norm(model).zaq_folding.kept["norm"]
    three = torch.randn(2, 6, 4)
    reasons = fold_batch_norm(model, (three,)).zaq_folding.kept
    assert "gives 3 dimensions" in reasons["norm"]
    assert fold_batch_norm(model, (torch.randn(2, 4),)).zaq_folding.folded


def test_inplace_changes_the_model_itself() -> None:
    model = perturb(Pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 8, 8)
    expected = model(x).detach()
    assert fold_batch_norm(model, inplace=True) is model
    assert isinstance(model.norm, nn.Identity)
    assert relative_error(expected, model(x).detach()) < 1e-5


def test_errors_say_what_to_do() -> None:
    model = Pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for other, meaning in (
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), ", where dropout is random"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ""),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), ", where BatchNorm uses batch stat"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            fold_batch_norm(other)
        assert str(caught.value).startswith(f"Sequential is in training mode{meaning}")
        assert str(caught.value).endswith("; call .eval() before it is folded and quantized")
        assert ("BatchNorm" in str(caught.value)) == ("BatchNorm" in meaning)
    with pytest.raises(ValueError, match=r"Pair is in training mode.*\.eval\(\)"):
        fold_batch_norm(model)
    program = torch.export.export(model.eval(), (torch.randn(1, 3, 8, 8),))
    with pytest.raises(TypeError, match=r"got ExportedProgram; pass program\.module\(\)"):
        fold_batch_norm(program)  # type: ignore[type-var]
    model.norm.running_var.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"cannot fold 'norm' into 'layer'.*NaN or infinity"):
        fold_batch_norm(model)


def test_exported_in_training_mode_is_left_alone() -> None:
    model = Pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    exported = torch.export.export(model, (torch.randn(2, 3, 8, 8),)).module()
    assert "evaluation mode" in fold_batch_norm(exported).zaq_folding.kept["norm"]


def test_a_traced_graph_in_training_mode_is_left_alone() -> None:
    model = Pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    assert "in training mode" in fold_batch_norm(fx.symbolic_trace(model)).zaq_folding.kept["norm"]
