"""GPTQ as a strategy: its objective computed directly, and what it may be composed with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.strategies import Request, apply

Make = Callable[..., Request]
NAMES = ("stem.0", "block.conv1", "block.conv2", "block.short.0", "fc")


def made_by(student: nn.Module, name: str) -> Tensor:
    """The quantized weight of a layer, (channels, elements) in float64."""
    layer: Any = student.get_submodule(name)
    weight: Tensor = layer.weight
    return weight.detach().flatten(1).double()


@pytest.mark.parametrize(
    ("bits", "part"), [(3, "cube-activations"), (4, "cube-activations"), (5, "top-k"), (8, "top-k")]
)
@pytest.mark.parametrize("name", ["pwlq", "gptq"])
def test_few_levels_are_clipped_by_least_cubes(
    model: nn.Module, request_of: Make, real: Tensor, name: str, bits: int, part: str
) -> None:
    request = request_of(4, bits, images=real)
    mine, wanted = (apply(n, model, request).model for n in (name, f"{name}+{part}"))
    assert torch.equal(mine(real), wanted(real))
    other = {"top-k": "cube-activations", "cube-activations": "top-k"}[part]
    assert not torch.equal(mine(real), apply(f"{name}+{other}", model, request).model(real))


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("name", ["pwlq", "gptq"])
def test_without_batch_norm_least_cubes_clip_at_any_width(
    request_of: Make, real: Tensor, name: str, bits: int
) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
    ).eval()
    plain(real)
    request = request_of(4, bits, images=real)
    mine, wanted, other = (
        apply(n, plain, request).model(real)
        for n in (name, f"{name}+cube-activations", f"{name}+top-k")
    )
    assert torch.equal(mine, wanted)
    assert not torch.equal(mine, other)


@pytest.mark.parametrize("levels", ["uniform", "pwlq"])
def test_gptq_rounds_the_float_weights_for_the_inputs_that_the_student_has(
    levels: str, model: nn.Module, request_of: Make, real: Tensor
) -> None:
    request = request_of(images=real, levels=levels, weight_bits=3)
    applied, plain = apply("gptq", model, request), apply("omse+top-k", model, request)
    assert "gptq: error feedback in 5 of 5 layers" in applied.notes
    folded, total = fold_batch_norm(model), torch.zeros(2, dtype=torch.float64)
    seen: dict[str, Tensor] = {}
    for name in NAMES:
        applied.model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: seen.__setitem__(name, args[0])
        )
    applied.model(real)
    for name in NAMES:
        layer: Any = applied.model.get_submodule(name)
        original: Any = folded.get_submodule(name)
        x = layer.input_fake_quant(seen[name]).double()
        if x.dim() > 2:  # im2col by torch
            x = nn.functional.unfold(x, layer.kernel_size, 1, layer.padding, layer.stride)
            x = x.movedim(1, 2).flatten(0, 1)
        weight = original.weight.detach().flatten(1).double()
        now = (made_by(applied.model, name) - weight) @ x.mT
        before = (made_by(plain.model, name) - weight) @ x.mT
        assert bool((now.square().mean(1) <= before.square().mean(1) * (1 + 1e-6)).all())
        total += torch.stack([now.square().mean(), before.square().mean()])
        shift = layer.bias.detach().double() + now.mean(1) - original.bias.detach().double()
        assert float(shift.abs().max()) < 1e-5, "the bias takes the mean error"
    # Of PWLQ's levels at this width the larger ones may not stand beside each other.
    assert float(total[0]) < {"uniform": 0.9, "pwlq": 0.95}[levels] * float(total[1])


def test_gptq_goes_with_what_comes_before_and_behind_it(
    model: nn.Module, request_of: Make, real: Tensor
) -> None:
    request = request_of(images=real, weight_bits=3, levels="uniform", effort=0.1)
    alone = apply("gptq", model, request).model.state_dict()
    for name in ("pwlq+gptq", "gptq+bias-correction"):
        other = apply(name, model, request).model.state_dict()
        assert all(torch.allclose(other[k], v, atol=1e-6) for k, v in alone.items()), name
    learned = apply("gptq+adaround", model, request)
    assert "adaround: " in learned.notes[-1]
    folded = fold_batch_norm(model)
    for record in learned.layers:  # noise is measured against the float weights, not the moved ones
        weight: Any = folded.get_submodule(record.name).weight
        rounded: Any = learned.model.get_submodule(record.name).weight
        ratio = weight.double().square().sum() / (weight - rounded).double().square().sum()
        assert record.sqnr_db == pytest.approx(10 * float(torch.log10(ratio)), abs=1e-2)


def test_memory_is_the_request_s(model: nn.Module, request_of: Make, real: Tensor) -> None:
    """Without any, batches are run anew for each layer; the result is the same."""
    runs: list[int] = []
    states = []
    for memory in (1 << 30, 0):
        before = len(runs)
        request = request_of(images=real, weight_bits=3, memory=memory)
        hook = nn.modules.module.register_module_forward_pre_hook(
            lambda module, args: runs.append(1) if type(module) is type(model) else None
        )
        states.append(apply("pwlq+gptq", model, request).model.state_dict())
        hook.remove()
        runs[before:] = [len(runs) - before]
    assert runs[1] > runs[0]
    for name, value in states[0].items():
        assert torch.allclose(value.double(), states[1][name].double(), atol=1e-5), name
    with pytest.raises(ValueError, match="memory must be a number of bytes; got -1"):
        request_of(memory=-1)


def test_zaq_tells_its_parts_apart_and_does_not_train(model: nn.Module, request_of: Make) -> None:
    applied = apply("zaq", model, request_of(synthetic_count=12))
    parts = {name for name in applied.stages if name.startswith("zero-shot (")}
    assert {"zero-shot (reconstruction)", "zero-shot (error feedback)"} <= parts
    assert "zero-shot (training)" not in parts
    whole = applied.stages["zero-shot"]
    assert sum(applied.stages[name] for name in parts) <= whole


def test_gptq_s_state_is_where_training_starts(
    model: nn.Module, request_of: Make, real: Tensor
) -> None:
    request = request_of(images=real, weight_bits=3, levels="uniform")
    alone = apply("gptq", model, request)
    request = request_of(synthetic=real, weight_bits=3, levels="uniform")
    trained = apply("gptq+zaq", model, request)
    assert "best state by the judge: start" in trained.notes[-1]
    for name in NAMES:  # so short a training finds nothing better: what is handed back is gptq's
        assert torch.equal(made_by(trained.model, name), made_by(alone.model, name)), name


def test_zaq_hands_error_feedback_over_where_iterations_are_few(
    model: nn.Module, request_of: Make
) -> None:
    request = request_of(weight_bits=3, synthetic_count=96, batch_size=16, levels="uniform")
    applied = apply("zaq", model, request)
    assert "best state by the judge: gptq" in applied.notes[-1]
    folded, moved = fold_batch_norm(model), 0
    for record in applied.layers:  # levels that are not the nearest ones, as error feedback's
        rounded: Any = applied.model.get_submodule(record.name).weight
        weight: Any = folded.get_submodule(record.name).weight
        levels = rounded.flatten(1)
        distance = (weight.flatten(1)[:, :, None] - levels[:, None, :]).abs()
        moved += int((distance.min(2).values < (weight - rounded).flatten(1).abs() - 1e-6).sum())
    assert moved > 0


def test_what_gptq_would_discard_is_refused(
    model: nn.Module, request_of: Make, real: Tensor
) -> None:
    request = request_of(images=real, weight_bits=3, levels="uniform")
    with pytest.raises(ValueError, match=r"discard what 'adaround' .* name it first: 'gptq\+ada"):
        apply("adaround+gptq", model, request)
    for later in ("gptq", "bias-correction"):
        with pytest.raises(ValueError, match=rf"'zero-shot' has trained away from; name '{later}'"):
            apply(f"zaq+{later}", model, request)
