"""Computed weights become plain ones; what the model computes stays."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from zaq_plugin import UniformSpec
from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import calibrate, fold_batch_norm, quantized_tensors, simulate
from zaq_plugin.ptq.bake import bake_parametrizations, copied
from zaq_plugin.pwlq import sqnr_db

warnings.filterwarnings("ignore", message=".*weight_norm.*")


class Doubled(nn.Module):
    """A parametrization of the user's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x.tanh()


def registered(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


WAYS = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm by hooks": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm by hooks": spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own parametrization": registered,
    "pruned": lambda m: prune.l1_unstructured(m, "weight", amount=0.3),
    "pruned twice": lambda m: prune.random_unstructured(
        prune.l1_unstructured(m, "weight", amount=0.3), "weight", amount=0.2
    ),
    "bias pruned": lambda m: prune.l1_unstructured(m, "bias", amount=0.3),
    "weight_norm, then pruned": lambda m: prune.l1_unstructured(
        weight_norm(m), "weight_v", amount=0.3
    ),
    "two parametrizations": lambda m: registered(parametrizations.weight_norm(m)),
}


def network(wrap) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        wrap(nn.Conv1d(2, 8, 5, padding=2)), nn.ReLU(), wrap(nn.Conv1d(8, 4, 3))
    ).eval()


@pytest.mark.parametrize("way", WAYS)
def test_the_function_and_the_modes_stay(way):
    model, x = network(WAYS[way]), torch.randn(2, 2, 16)
    right = model(x).detach()
    clone = copied(model)
    clone.train()
    assert bake_parametrizations(clone) == ["0", "2"]
    assert all(m.training for m in clone.modules())
    torch.testing.assert_close(clone.eval()(x), right, rtol=1e-6, atol=1e-6)
    for index in (0, 2):
        assert type(clone[index]) is nn.Conv1d
        assert sorted(dict(clone[index].named_parameters())) == ["bias", "weight"]
        assert not dict(clone[index].named_buffers())
        assert not clone[index]._forward_pre_hooks
    torch.testing.assert_close(model(x), right, rtol=0, atol=0)
    assert bake_parametrizations(clone) == []


@pytest.mark.parametrize("way", WAYS)
def test_folding_and_simulation_quantize_it(way):
    model, x = network(WAYS[way]), torch.randn(4, 2, 32)
    folded = fold_batch_norm(model)
    assert folded.zaq_folding.baked == ("0", "2")
    student = simulate(folded, UniformSpec(7, "symmetric"), 8, observer=MinMaxObserver)
    calibrate(student, [x])
    assert set(quantized_tensors(student)) == {"0", "2"}
    assert sqnr_db(model(x), student(x)) > 28


def test_a_history_of_gradients_is_no_obstacle_to_copying():
    model = network(weight_norm)
    model(torch.randn(2, 2, 16)).sum().backward()
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(model)
    weight = model[0].weight
    again = copied(model)
    assert model[0].weight is weight
    x = torch.randn(2, 2, 16)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_tied_layers_stay_tied_and_a_plain_twin_keeps_its_weight():
    first, second, plain = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = plain.weight = first.weight
    before = first.weight.detach().clone()
    for layer in (first, second):
        registered(layer)
    model = nn.Sequential(first, second, plain)
    x = torch.randn(3, 4)
    right = model(x).detach()
    assert bake_parametrizations(model) == ["0", "1"]
    assert first.weight is second.weight
    torch.testing.assert_close(plain.weight.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(model(x), right)


def test_pruning_leaves_a_twin_of_its_weight_alone():
    pruned, plain = nn.Linear(4, 4), nn.Linear(4, 4)
    plain.weight = pruned.weight
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    model, x = nn.Sequential(pruned, plain), torch.randn(3, 4)
    right = model(x).detach()
    bake_parametrizations(model)
    torch.testing.assert_close(model(x), right)


def test_a_recurrent_layer_computes_with_its_baked_weight():
    layer = parametrizations.weight_norm(nn.GRU(3, 4, batch_first=True), "weight_hh_l0").eval()
    x = torch.randn(2, 5, 3)
    right = layer(x)[0].detach()
    assert bake_parametrizations(layer) == [""]
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], right)
        layer.weight_hh_l0.mul_(3)
        assert not torch.allclose(layer(x)[0], right)


def test_fake_quantizers_are_left_alone():
    student = simulate(nn.Sequential(nn.Linear(4, 4)), UniformSpec(4), None)
    assert bake_parametrizations(student) == []
    assert set(quantized_tensors(student)) == {"0"}


def test_frozen_weights_stay_frozen():
    for wrap in (parametrizations.weight_norm, weight_norm, spectral_norm, WAYS["pruned"]):
        model = network(wrap).requires_grad_(False)
        bake_parametrizations(model)
        assert not any(p.requires_grad for p in model.parameters())


def test_a_failing_parametrization_is_named():
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                raise RuntimeError("only for training")
            return x

    model = nn.Sequential(nn.Linear(2, 2))
    parametrize.register_parametrization(model[0], "weight", Fails())
    with pytest.raises(ValueError, match="layer '0' .*Linear.*only for training"):
        bake_parametrizations(model)
