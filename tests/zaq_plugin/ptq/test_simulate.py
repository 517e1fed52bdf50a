"""A simulated student: which layers it quantizes, with what, and what it says about the rest."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import audit, calibrate, quantized_tensors, simulate, twin
from zaq_plugin.ptq.simulate import activation_fake_quant
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize


class Small(nn.Module):
    """Four kinds of layers, executed in another order than they are registered in."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.stem = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.depthwise(self.stem(x).relu()))
        return self.head(x.mean((2, 3)).relu())


def batches(count: int = 2, size: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 12, 12, generator=generator) for _ in range(count)]


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.mark.parametrize(
    "spec",
    [PWLQSpec(bits=4), PWLQSpec(bits=3, grid="float", policy="gaussian"), UniformSpec(bits=5)],
    ids=["joint", "closed-form-float-grid", "uniform"],
)
def test_weights_are_those_of_quantize(spec: PWLQSpec | UniformSpec) -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    student = simulate(model, spec, None, depthwise="as-told")
    tensors = quantized_tensors(student)
    assert list(tensors) == ["head", "stem", "depthwise", "up"]
    for name, tensor in tensors.items():
        original = model.get_submodule(name).weight.detach()
        expected = quantize(original, spec, 1 if name == "up" else 0)
        assert torch.equal(tensor.codes, expected.codes)
        assert torch.equal(student.get_submodule(name).weight, expected.dequantize())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_output_is_that_of_quantized_weights_and_inputs() -> None:
    """The student against the same arithmetic written out with torch's own functions."""
    model, images = small(), batches()
    student = simulate(
        model, UniformSpec(4), 6, observer=MinMaxObserver, example_inputs=(images[0],)
    )
    calibrate(student, images)
    x = torch.cat(images)
    ranges = {}
    with torch.no_grad():
        stem = model.stem(x)
        wide, up = model.depthwise(stem.relu()), model.up(model.depthwise(stem.relu()))
        inputs = {"stem": x, "depthwise": stem.relu(), "up": wide, "head": up.mean((2, 3)).relu()}
        for name, value in inputs.items():
            bits = 8 if name == "stem" else 6
            low, high = min(0.0, float(value.min())), max(0.0, float(value.max()))
            scale = (high - low) / (2**bits - 1)
            ranges[name] = (scale, round(-low / scale), 2**bits - 1)

        def grid(value: Tensor, name: str) -> Tensor:
            scale, zero, top = ranges[name]
            return torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, top)

        w = {name: t.dequantize() for name, t in quantized_tensors(student).items()}
        y = F.conv2d(grid(x, "stem"), w["stem"], model.stem.bias).relu()
        y = F.conv2d(grid(y, "depthwise"), w["depthwise"], groups=8)
        y = F.conv_transpose2d(grid(y, "up"), w["up"], model.up.bias, groups=2).mean((2, 3)).relu()
        expected = F.linear(grid(y, "head"), w["head"], model.head.bias)
        assert torch.allclose(student(x), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(student(x), model(x), rtol=1e-2)


def test_input_bits_go_where_the_input_is() -> None:
    images = batches()
    student = simulate(small(), PWLQSpec(bits=4), 4, example_inputs=(images[0],))
    calibrate(student, images)
    assert student.stem.input_fake_quant.bits == 8
    assert student.head.input_fake_quant.bits == 4
    wrong = simulate(small(), PWLQSpec(bits=4), 4)
    with pytest.raises(ValueError, match=r"enter at 'head', but it enters at 'stem'; pass example"):
        calibrate(wrong, images)
    same = simulate(small(), PWLQSpec(bits=4), 4, input_bits=None)
    calibrate(same, images)
    assert same.stem.input_fake_quant.bits == 4


def test_overrides_and_their_reasons() -> None:
    eight = UniformSpec(bits=8)
    student = simulate(
        small(),
        PWLQSpec(bits=4),
        8,
        overrides={"ste*": None, "head": (eight, None), "*": (PWLQSpec(bits=3), 6)},
    )
    records = student.zaq_audit
    assert not records["stem"].quantized
    assert records["stem"].reason == "override 'ste*' is None"
    assert (records["head"].mac_bits, records["head"].activation) == (8, "float")
    assert (records["up"].mac_bits, records["up"].stored_bits) == (3, 4)
    assert records["depthwise"].mac_bits == 3  # told otherwise, so not kept at int8
    with pytest.raises(
        ValueError, match=r"no layer matches 'layer9\.\*'\. The model's layers are: head"
    ):
        simulate(small(), eight, 8, overrides={"layer9.*": None})


def test_first_and_last_layer() -> None:
    images = batches()
    student = simulate(
        small(),
        PWLQSpec(bits=3),
        3,
        first_last=(UniformSpec(bits=8), 8),
        depthwise="as-told",
        example_inputs=(images[0],),
    )
    widths = {r.name: r.mac_bits for r in student.zaq_audit}
    assert widths == {"head": 8, "stem": 8, "depthwise": 3, "up": 3}
    assert student.head.input_fake_quant.bits == 8


def test_depthwise_stays_int8_where_levels_cost_more() -> None:
    record = simulate(small(), PWLQSpec(bits=4), None).zaq_audit["depthwise"]
    assert (record.mac_bits, record.stored_bits, record.stored_bytes) == (8, 8, 9 * 8 + 4 * 8)
    # 45 bytes of 5-bit codes, and per channel clip and breakpoint of each side, four bytes each,
    # and the largest integer, one byte
    assert f"{45 + 8 * 4 * 4 + 8} bytes with its levels against 104" in (record.reason or "")
    other = simulate(small(), PWLQSpec(bits=4), None, depthwise="as-told").zaq_audit["depthwise"]
    assert (other.mac_bits, other.stored_bytes) == (4, 45 + 8 * 4 * 4 + 8)
    uniform = simulate(small(), UniformSpec(bits=4), None).zaq_audit["depthwise"]
    assert uniform.mac_bits == 4


class Attention(nn.Module):
    """Tied weights, an embedding, torch's own attention and one of Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fused = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.second = nn.Linear(8, 11)
        self.second.weight = self.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        x = x + self.fused(x, x, x)[0]
        return self.head(x) + self.second(x)


def test_attention_and_tied_weights() -> None:
    torch.manual_seed(0)
    model, tokens = Attention().eval(), torch.arange(10).reshape(2, 5)
    student = simulate(model, PWLQSpec(bits=4), 8, example_inputs=(tokens,))
    calibrate(student, [{"tokens": tokens}])
    records = student.zaq_audit
    assert [r.name for r in records.quantized] == ["qkv", "proj", "head", "second"]
    assert "shares its weight with 'head'" in (records["second"].reason or "")
    assert records["second"].stored_bytes == 0
    assert "without calling the layer" in (records["fused.out_proj"].reason or "")
    assert "no convolution or linear module" in (records["fused.in_proj_weight"].reason or "")
    assert not records["embedding.weight"].quantized
    parts = [student.head, student.second]
    assert parts[0].parametrizations.weight.original is parts[1].parametrizations.weight.original
    assert torch.equal(parts[0].weight, parts[1].weight)
    assert student(tokens).isfinite().all()
    with torch.no_grad():
        assert torch.equal(twin(student)(tokens), model(tokens))


def test_twin_is_the_float_model() -> None:
    model, images = small(), batches()
    student = simulate(model, PWLQSpec(bits=3), 4, example_inputs=(images[0],))
    calibrate(student, images)
    teacher = twin(student)
    with torch.no_grad():
        assert torch.equal(teacher(images[0]), model(images[0]))
        assert not torch.equal(student(images[0]), model(images[0]))
    assert not any(p.requires_grad for p in teacher.parameters())
    names = {n for n, _ in student.named_modules()}
    assert {n for n, _ in teacher.named_modules()} == names


def test_gradients_reach_the_float_weights() -> None:
    student = simulate(small(), PWLQSpec(bits=4), 8, example_inputs=(batches()[0],))
    calibrate(student, batches())
    student(batches()[0]).square().sum().backward()
    grad = student.stem.parametrizations.weight.original.grad
    assert grad is not None
    assert float(grad.abs().sum()) > 0


def test_state_dict_restores_a_fresh_student() -> None:
    images = batches()
    student = simulate(small(), PWLQSpec(bits=4), 4, example_inputs=(images[0],))
    calibrate(student, images)
    torch.manual_seed(5)
    fresh = simulate(Small().eval(), PWLQSpec(bits=4), 4, example_inputs=(images[0],))
    fresh.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(images[0]), student(images[0]))


def test_pwlq_activations() -> None:
    images = batches()
    student = simulate(small(), PWLQSpec(bits=4), PWLQSpec(bits=4), example_inputs=(images[0],))
    calibrate(student, images)
    assert "PWLQ 4b MAC/5b stored" in str(student.zaq_audit["head"].activation)
    values = student.head.input_fake_quant(torch.rand(4, 8))
    assert len(values.unique()) <= 32


def test_calibration_forgets_and_freezes() -> None:
    first, second = batches(), [x * 3 for x in batches()]
    student = simulate(small(), UniformSpec(8), 8, example_inputs=(first[0],))
    assert "not calibrated" in str(student.zaq_audit["head"].activation)
    calibrate(student, first)
    calibrate(student, second)
    fresh = simulate(small(), UniformSpec(8), 8, example_inputs=(first[0],))
    calibrate(fresh, [(x, torch.zeros(4)) for x in second])
    assert torch.equal(student.head.input_fake_quant.scale, fresh.head.input_fake_quant.scale)
    scale = student.stem.input_fake_quant.scale.clone()
    student(first[0] * 100)
    assert torch.equal(student.stem.input_fake_quant.scale, scale)
    assert student.training is False


def test_a_layer_that_no_batch_reaches_stays_float_at_its_input() -> None:
    model = small()
    model.unused = nn.Linear(4, 4)
    student = simulate(model, UniformSpec(8), 8, example_inputs=(batches()[0],))
    calibrate(student, batches())
    assert "not calibrated" in str(student.zaq_audit["unused"].activation)
    x = torch.randn(2, 4)
    expected = F.linear(x, student.unused.weight, model.unused.bias)
    assert torch.equal(student.unused(x), expected)


def test_errors_name_what_came_and_the_way_out() -> None:
    with pytest.raises(ValueError, match="nothing was quantized"):
        simulate(nn.Sequential(nn.ReLU()), PWLQSpec())
    with pytest.raises(ValueError, match=r"nothing was quantized(.|\n)*override '\*'"):
        simulate(nn.Sequential(nn.Linear(2, 2)), PWLQSpec(), overrides={"*": None})
    exported = torch.export.export(small(), (batches()[0],)).module()
    with pytest.raises(ValueError, match=r"nothing was quantized(.|\n)*exported graph"):
        simulate(exported, PWLQSpec())
    with pytest.raises(
        TypeError, match="weights must be a format such as a PWLQSpec, or None; got int"
    ):
        simulate(small(), 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"activations must be a width.*got str"):
        simulate(small(), PWLQSpec(), "8")  # type: ignore[arg-type]
    broken = small()
    with torch.no_grad():
        broken.stem.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer 'stem' \(Conv2d\): .*NaN"):
        simulate(broken, PWLQSpec())
    with pytest.raises(ValueError, match=r"layer 'stem' \(Conv2d\): .*bits must be from 2 to 8"):
        simulate(small(), PWLQSpec(), 9)
    with pytest.raises(ValueError, match="clip='mse' is for weights; use clip='minmax'"):
        activation_fake_quant(UniformSpec(8, clip="mse"))
    student = simulate(small(), PWLQSpec(), 8, example_inputs=(batches()[0],))
    with pytest.raises(ValueError, match="calibrate got no batches"):
        calibrate(student, [])
    with pytest.raises(TypeError, match="a batch must be a tensor.*got str"):
        calibrate(student, ["image"])
    with pytest.raises(ValueError, match=r"input of layer '(head|stem)': .*NaN or infinite"):
        calibrate(student, [torch.full((1, 3, 12, 12), float("nan"))])
    with pytest.raises(ValueError, match="no fake-quantized weights"):
        quantized_tensors(small())
    with pytest.raises(ValueError, match="carries no plan"):
        audit(small())
