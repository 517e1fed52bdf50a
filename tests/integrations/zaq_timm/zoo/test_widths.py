"""Sensitivities against their definition, sizes against those of hosts, budgets."""

from __future__ import annotations

import pytest
import torch
from zoo_own_models import odd, tiny

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.ptq.mixed_precision import Sensitivity, sensitivities_of
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize
from zaq_timm.zoo.hosts import Request, on_host
from zaq_timm.zoo.measure import distance, outputs
from zaq_timm.zoo.quantities import Budget
from zaq_timm.zoo.widths import find_places, within_budget

IMAGES = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_each_layer_alone_is_what_is_quantized() -> None:
    torch.manual_seed(0)
    model = tiny().eval()
    model(IMAGES)
    folded, places = find_places(model, IMAGES[:2].clone())
    assert [p.name for p in places] == ["0", "3", "8"]
    before = [p.weight.clone() for p in places]
    spec = PWLQSpec(bits=2)
    before_all = outputs(folded, IMAGES, 4)
    costs = sensitivities_of(
        places,
        lambda _: [spec],
        lambda: distance(before_all, outputs(folded, IMAGES, 4)).divergence,
    )
    for place, weight in zip(places, before, strict=True):
        assert torch.equal(place.weight, weight)
    reference = fold_batch_norm(model, (IMAGES,))
    p = torch.softmax(reference(IMAGES).double(), 1)
    for one in costs:
        layer = reference.get_submodule(one.layer)
        float_weight = layer.weight.clone()
        tensor = quantize(float_weight, spec)
        layer.weight.copy_(tensor.dequantize())
        q = torch.softmax(reference(IMAGES).double(), 1)
        layer.weight.copy_(float_weight)
        expected = float((p * (p / q).log()).sum(1).mean())
        assert one.divergence == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert one.divergence > 0
        assert (one.numel, one.size) == (float_weight.numel(), tensor.stored_bytes)


def test_places_are_the_layers_that_the_hosts_quantize() -> None:
    for model, images in ((tiny().eval(), IMAGES), (odd().eval(), torch.randn(4, 3, 16, 16))):
        _, places = find_places(model, images[:2].clone())
        request = Request(model, PWLQSpec(bits=4), 8, {}, images, 4)
        assert {p.name for p in places} == {r.name for r in on_host("pt2e", request).layers}
    _, places = find_places(tiny().eval(), IMAGES)
    assert {p.name for p in places} == {
        r.name
        for r in on_host("fx", Request(tiny().eval(), PWLQSpec(bits=4), 8, {}, IMAGES, 4)).layers
    }


def test_hosts_store_what_sizes_say() -> None:
    _, places = find_places(tiny().eval(), IMAGES)
    overrides = {"3": PWLQSpec(bits=2), "8": UniformSpec(8)}
    converted = on_host("pt2e", Request(tiny().eval(), PWLQSpec(bits=3), 8, overrides, IMAGES, 4))
    sizes = {p.name: p.size(overrides.get(p.name, PWLQSpec(bits=3))) for p in places}
    assert {r.name: r.stored_bytes for r in converted.layers} == sizes


def test_widths_go_from_narrow_to_eight_bits() -> None:
    assert [s.stored_bits for s in PWLQSpec(bits=4).widths()] == [3, 4, 5, 6, 7, 8]
    uniform = list(UniformSpec(4, "asymmetric", "mse").widths())
    assert [s.stored_bits for s in uniform] == [2, 3, 4, 5, 6, 7, 8]
    assert all(s.clip == "mse" for s in uniform)  # type: ignore[union-attr]


def test_a_budget_below_the_narrowest_widths_is_refused() -> None:
    costs = [
        Sensitivity(f"layer{i}", spec, 100, 50 * spec.stored_bits, 1.0 / spec.stored_bits)
        for i in range(2)
        for spec in PWLQSpec(bits=4).widths()
    ]
    with pytest.raises(ValueError, match=r"even the narrowest widths take [\d,]+ bits"):
        within_budget(costs, Budget(bits=2.9), 0)
    with pytest.raises(ValueError, match="narrowest widths take 300 bytes .beside 10 that stay fl"):
        within_budget(costs, Budget(size=309), 10)
    points, best = within_budget(costs, Budget(size=310), 10)
    assert best is points[0]
