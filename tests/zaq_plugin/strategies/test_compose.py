"""Names, compositions, requests, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from layers import quantized_layers
from torch import Tensor, nn

from zaq_plugin.ptq import fold_batch_norm, simulate
from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.strategies import PARTS, STRATEGIES, Request, apply, compose, synthetic_images
from zaq_plugin.strategies.prepared import quantize_prepared

Make = Callable[..., Request]
LEARNING = [name for name, s in STRATEGIES.items() if s.trains]


@pytest.mark.parametrize("levels", ["pot", "pwlq", "uniform"])
def test_a_composition_has_the_levels_of_its_method(levels: str) -> None:
    method = replace(STRATEGIES["gptq"], name="mine", levels=levels)
    assert compose([method, "bias-correction"]).levels == levels
    assert compose(["rq", method]).levels == levels


@pytest.mark.parametrize("levels", ["uniform", "pwlq"])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_gives_a_calibrated_student_at_the_bits_asked_for(
    name: str, levels: str, model: nn.Module, request_of: Make, real: Tensor
) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = real if STRATEGIES[name].data == "real" else None
    applied = apply(name, model, request_of(levels=levels, images=images))
    assert (applied.strategy, applied.levels) == (name, levels)
    assert applied.data == STRATEGIES[name].data
    mean = sum(r.stored_bits * r.numel for r in applied.layers) / sum(
        r.numel for r in applied.layers
    )
    assert mean > 4.1 if name == "lbq" else 3.2 < mean <= 4
    if name not in ("lbq", "aciq", "zeroq-mp"):
        assert {r.mac_bits for r in applied.layers} == {4 if levels == "uniform" else 3}
    assert all("not calibrated" not in str(r.activation) for r in applied.layers)
    x = torch.randn(4, 3, 16, 16)
    y = applied.model(x)
    assert y.shape == (4, 5)
    assert not torch.equal(y, model(x))
    assert float((y - model(x)).norm() / model(x).norm()) < 0.5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "model touched"
    assert not any(m.training for m in applied.model.modules())


@pytest.mark.parametrize("name", ["aciq", "dfq", "zeroq", "qdrop", "gdfq"])
def test_a_seed_fixes_everything(name: str, model: nn.Module, request_of: Make) -> None:
    x = torch.randn(4, 3, 16, 16)
    torch.manual_seed(1)
    one = apply(name, model, request_of(activation_bits=4, seed=3)).model(x)
    torch.manual_seed(2)
    assert torch.equal(apply(name, model, request_of(activation_bits=4, seed=3)).model(x), one)
    if name != "dfq":  # which draws nothing
        other = apply(name, model, request_of(activation_bits=4, seed=4)).model(x)
        assert not torch.equal(other, one)


def test_an_unknown_strategy_is_named_with_what_may_have_been_meant(
    model: nn.Module, request_of: Make
) -> None:
    with pytest.raises(
        ValueError, match=r"no strategy 'omsee'. Did you mean 'omse'\? Known are rq"
    ):
        apply("omsee", model, request_of())
    with pytest.raises(ValueError, match="no strategy 'wrong'"):
        compose("rq+wrong")
    with pytest.raises(ValueError, match="at least one strategy; got an empty list"):
        compose([])


def test_strategies_are_ordered_from_the_floor_up_and_tell_their_papers() -> None:
    assert next(iter(STRATEGIES)) == "rq"
    assert all(s.paper and s.title and s.name == name for name, s in STRATEGIES.items())
    assert not set(STRATEGIES) & set(PARTS)


def test_compositions_add_what_comes_before_and_after(model: nn.Module, request_of: Make) -> None:
    both = compose("dfq+adaround")
    assert [s.name for s in both.stages] == [
        "equalise", "distilled", "minmax", "batch-norm-ranges", "batch-norm-correction", "adaround",
    ]  # fmt: skip
    assert both.trains
    assert both.paper == "Nagel et al., ICCV 2019; Nagel et al., ICML 2020"
    swapped = compose("dfq+mse+adaround+bias-correction")
    assert [s.name for s in swapped.stages][2] == "mse"
    assert [s.name for s in swapped.stages][-1] == "bias-correction"
    assert compose(["dfq", "adaround"]).stages == both.stages
    assert [s.name for s in compose("rq+rq+bias-correction+bias-correction").stages] == [
        "noise", "minmax", "minmax-activations", "bias-correction",
    ]  # fmt: skip
    applied = apply("dfq+adaround", model, request_of())
    assert any("pairs of layers equalised" in n for n in applied.notes)
    assert any(n.startswith("adaround: ") for n in applied.notes)


@pytest.mark.parametrize("name", ["pwlq+gptq", "gptq+bias-correction", "dfq+gptq"])
def test_error_feedback_replaces_other_corrections_of_the_bias(name: str) -> None:
    """It takes them back and corrects biases itself: once is enough."""
    after = [stage.name for stage in compose(name).stages if stage.slot == "after"]
    assert after == ["gptq"]


@pytest.mark.parametrize("name", ["equalise", "mse+real", "bias-correction"])
def test_parts_alone_are_no_strategy(name: str) -> None:
    with pytest.raises(ValueError, match="does not say which grid .* name a strategy first"):
        compose(name)


def test_real_images_take_the_place_of_synthetic_ones_where_they_may(
    model: nn.Module, request_of: Make, real: Tensor
) -> None:
    assert apply("omse", model, request_of(images=real)).data == "real"
    assert apply("zeroq", model, request_of(images=real)).data == "synthetic"
    assert apply("omse+distilled", model, request_of(images=real)).data == "synthetic"
    applied = apply("rq+real", model, request_of(images=real))
    watcher = dict(quantized_layers(applied.model))["stem.0"].input_fake_quant
    observer: Any = watcher.activation_post_process  # type: ignore[union-attr]
    assert float(observer.max_val) == float(real.max())
    for name in ("ft", "rq+real"):
        with pytest.raises(ValueError, match=r"needs real images, and the request has none; pass"):
            apply(name, model, request_of())


@pytest.mark.parametrize("name", ["rq", "pwlq", "zeroq", "deepinversion"])
def test_images_can_be_made_once_and_shared(name: str, model: nn.Module, request_of: Make) -> None:
    images = synthetic_images(name, model, request_of(weight_bits=8))
    own, shared = apply(name, model, request_of()), apply(name, model, request_of(synthetic=images))
    assert own.images is not None
    assert torch.equal(own.images, images)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(own.model(x), shared.model(x))
    assert synthetic_images("ft", model, request_of()) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_bits": 1}, "weight_bits must be from 2 to 8; got 1"),
        ({"activation_bits": 9}, "activation_bits must be from 2 to 8; got 9"),
        (
            {"levels": "log"},
            "levels must be one of 'auto', 'uniform', 'pwlq', 'pot', 'codebook'; got 'log'",
        ),
        ({"granularity": "row"}, "granularity must be one of 'channel', 'tensor'; got 'row'"),
        ({"example_inputs": ()}, "example_inputs must be a tuple that starts with a batch"),
        ({"example_inputs": torch.zeros(2, 3, 8, 8)}, "a batch of images; got Tensor"),
        ({"example_inputs": (torch.zeros(3, 4),)}, r"must start with images .* shape \(3, 4\)"),
        ({"images": torch.zeros(4, 1, 16, 16)}, r"images must be \(n, 3, 16, 16\) like"),
        ({"synthetic": torch.full((4, 3, 16, 16), float("nan"))}, "must hold finite values"),
        ({"effort": 0}, "effort must be positive; got 0"),
        ({"synthetic_count": 1}, "synthetic_count and batch_size must be at least 2"),
    ],
)
def test_requests_that_make_no_sense(changes: Any, words: str, request_of: Make) -> None:
    with pytest.raises(ValueError, match=words):
        request_of(**changes)
    with pytest.raises(TypeError, match="weight_bits must be an int from 2 to 8; got 4.0"):
        request_of(weight_bits=4.0)
    with pytest.raises(TypeError, match=r"got list: torch\.cat\(images\) is one"):
        request_of(images=[torch.zeros(2, 3, 17, 17)])
    with pytest.raises(TypeError, match=r"got ndarray: torch\.from_numpy\(images\) is one"):
        request_of(images=np.zeros((2, 3, 17, 17)))
    with pytest.raises(ValueError, match=r"Tensor of shape \(2, 3, 17, 17\): write \(images,\)"):
        request_of(example_inputs=torch.zeros(2, 3, 17, 17))
    with pytest.raises(TypeError, match="images must be a tensor; got list"):
        request_of(images=[1])


def test_what_is_no_model_is_told(model: nn.Module, request_of: Make) -> None:
    with pytest.raises(TypeError, match="expects an nn.Module as its model, got 'model.pt'; make"):
        apply("pwlq", "model.pt", request_of())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got 7; pass the float model itself"):
        apply("pwlq", 7, request_of())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes the strategy first; got a Net, a model"):
        apply(model, "pwlq", request_of())  # type: ignore[arg-type]


def test_pwlq_levels_where_they_do_not_exist(model: nn.Module, request_of: Make) -> None:
    with pytest.raises(ValueError, match="levels='pwlq' needs at least 3 stored bits"):
        apply("rq", model, request_of(weight_bits=2, levels="pwlq"))
    words = r"pwlq: PWLQ needs at least 3 stored bits .* weights get uniform levels. Ask for w"
    with pytest.warns(UserWarning, match=words) as caught:
        applied = apply("pwlq", model, request_of(weight_bits=2))
    assert caught[0].filename == __file__
    assert applied.levels == "uniform"
    assert applied.notes == ["uniform levels: PWLQ needs at least 3 stored bits"]
    assert "\n  weights      uniform, 2 MAC / 2 stored bits\n" in str(applied)
    assert "\n  note         uniform levels: PWLQ needs at least 3 stored bits" in str(applied)
    eight = apply("pwlq", model, request_of(weight_bits=8))
    assert {r.mac_bits for r in eight.layers} == {8}
    assert "weights at 8 stored bits are uniform" in eight.notes[0]


def test_what_was_applied_is_printed_in_a_few_lines(
    model: nn.Module, request_of: Make, real: Tensor, recwarn: pytest.WarningsRecorder
) -> None:
    applied = apply("pwlq+gptq", model, request_of(images=real))
    first, weights, activations, images, seconds, *notes = str(applied).splitlines()
    count = len(list(quantized_layers(applied.model)))
    assert first == f"pwlq+gptq, simulated: {count} of {count} layers of Net quantized"
    assert weights == "  weights      pwlq, 3 MAC / 4 stored bits"
    assert activations == "  activations  uniform 8b MAC/8b stored per tensor"
    assert images == "  images       12 given"
    assert seconds.startswith("  seconds      ")
    assert notes == [f"  note         {note}" for note in applied.notes]
    assert repr(applied) == str(applied)
    made = str(apply("pwlq", model, request_of(synthetic_count=6)))
    assert "  images       6 synthetic\n" in made
    assert not [w for w in recwarn if "stored bits" in str(w.message)]


@pytest.mark.parametrize("name", ["aciq+adaround", "lbq+zaq", "aciq+gdfq"])
def test_weights_of_several_tensors_cannot_be_learned(
    name: str, model: nn.Module, request_of: Make
) -> None:
    words = "cannot move the weight of layer|trains on its own generator's images"
    with pytest.raises(ValueError, match=words):
        apply(name, model, request_of())


@pytest.mark.parametrize("name", ["aciq", "lbq"])
def test_channel_methods_have_no_grid_per_tensor(
    name: str, model: nn.Module, request_of: Make
) -> None:
    with pytest.raises(ValueError, match="does not exist with granularity='tensor'"):
        apply(name, model, request_of(granularity="tensor"))


@pytest.mark.parametrize("name", ["dfq", "zeroq", "deepinversion", "gdfq"])
def test_batch_norm_methods_refuse_a_model_without(name: str, request_of: Make) -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()  # fmt: skip
    with pytest.raises(ValueError, match="Sequential has no BatchNorm.* use "):
        apply(name, plain, request_of())
    for other in ("pwlq", "zaq"):
        assert apply(other, plain, request_of()).data == "synthetic"


def test_nothing_to_equalise_is_an_error(request_of: Make) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(),
                          nn.Linear(784, 5)).eval()  # fmt: skip
    with pytest.raises(ValueError, match="nothing to equalise in Sequential"):
        apply("dfq", model, request_of())


def test_gdfq_is_for_classifiers(request_of: Make) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match="gdfq is for classifiers: .* Sequential does not answer"):
        apply("gdfq", model, request_of())


@pytest.mark.parametrize("name", ["brecq", "zaq"])
def test_no_step_takes_more_images_than_the_request_says(
    name: str, model: nn.Module, request_of: Make
) -> None:
    """Memory of large inputs is bounded by ``batch_size``."""
    seen: list[int] = []
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(7))

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Conv2d) and torch.is_grad_enabled():
            seen.append(len(inputs[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        apply(name, model, request_of(synthetic=images))
    finally:
        hook.remove()
    assert max(seen) == 4


def test_deepinversion_without_classes_says_so(request_of: Make) -> None:
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    applied = apply("deepinversion", dense.eval(), request_of())
    words = "images without a term for classes (equation 2): Sequential does not answer with"
    assert [note for note in applied.notes if note.startswith(words)]
    assert applied.images is not None
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    assert not [
        n for n in apply("deepinversion", classifier.eval(), request_of()).notes if "term" in n
    ]


def test_a_stage_learns_under_the_callers_no_grad(model: nn.Module, request_of: Make) -> None:
    with torch.no_grad():
        applied = apply("adaround", model, request_of(activation_bits=None))
        prepared = simulate(fold_batch_norm(model), UniformSpec(4), None)
        notes = quantize_prepared(prepared, [torch.randn(8, 3, 16, 16)], "adaround", effort=0.02)
        assert not torch.is_grad_enabled()
    for said in (applied.notes, notes):
        assert any(note.startswith("adaround: ") for note in said)
