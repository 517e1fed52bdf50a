"""Widths by sensitivity against every assignment there is."""

import itertools

import pytest
import torch
from torch import nn

from zaq_plugin.ptq.mixed_precision import Sensitivities, allocate_widths, kl_sensitivity
from zaq_plugin.pwlq import UniformSpec, fake_quantize
from zaq_plugin.zero_shot.discrepancy import all_outputs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [3, 4, 5.5])
def test_no_other_assignment_is_better(seed: int, bits: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 50, (5,), generator=generator).tolist()
    sensitivities = Sensitivities(numel={f"l{i}": n for i, n in enumerate(sizes)})
    for name in sensitivities.numel:
        values = torch.rand(4, generator=generator).sort(descending=True).values.tolist()
        sensitivities.divergence[name] = dict(zip((2, 3, 4, 6), values, strict=True))
    chosen = allocate_widths(sensitivities, bits)
    limit = bits * sum(sizes)

    def total(widths: tuple[int, ...]) -> float:
        pairs = zip(sensitivities.divergence.values(), widths, strict=True)
        return sum(choices[w] for choices, w in pairs)

    possible = [
        widths
        for widths in itertools.product((2, 3, 4, 6), repeat=5)
        if sum(w * n for w, n in zip(widths, sizes, strict=True)) <= limit
    ]
    assert tuple(chosen.values()) in possible
    assert total(tuple(chosen.values())) == pytest.approx(min(map(total, possible)))
    # Merging of near assignments may cost a little, and never breaks the budget.
    thin = allocate_widths(sensitivities, bits, states=8)
    assert tuple(thin.values()) in possible


def test_a_budget_that_nothing_fits_in_is_an_error() -> None:
    sensitivities = Sensitivities({"a": {4: 0.1}}, {"a": 10})
    with pytest.raises(ValueError, match="no widths fit a mean of 3 stored bits: .* take 4.00"):
        allocate_widths(sensitivities, 3)


def test_sensitivity_is_the_divergence_of_one_quantized_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).eval()
    x = torch.randn(6, 3, 5, 5)
    spec = UniformSpec(2)
    sensitivities = kl_sensitivity(model, {2: spec}, x, adapter=all_outputs)
    assert sensitivities.inputs == {"0"}
    assert sensitivities.numel == {"0": 108, "3": 180}
    p = model(x).double().softmax(1)
    for name in ("0", "3"):
        layer = model.get_submodule(name)
        original = layer.weight.detach().clone()
        layer.weight.data = fake_quantize(original, spec)
        q = model(x).double().softmax(1)
        layer.weight.data = original
        expected = float((p * (p / q).log()).sum(1).mean())
        assert sensitivities.divergence[name][2] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="ReLU has no convolution or linear layer"):
        kl_sensitivity(nn.ReLU(), {2: spec}, x, adapter=all_outputs)
