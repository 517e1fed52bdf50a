"""`zaq_nncf.quantize`: every kind of calibration, NNCF's options, formats by layer, errors."""

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import nncf
import pytest
import torch
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    OverflowFix,
    QuantizationParameters,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import zaq_nncf
from zaq_nncf.activation_quantizers import (
    AsymmetricActivationQuantizer,
    SymmetricActivationQuantizer,
)
from zaq_nncf.calibration import as_dataset
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer
from zaq_plugin import PWLQSpec, UniformSpec, ZeroShotConfig, ZeroShotLoader, quantize
from zaq_plugin.image_counts import CALIBRATION_IMAGES, TRAINING_IMAGES
from zaq_plugin.ptq import fold_batch_norm

FAST = PWLQSpec(bits=4, policy="gaussian")
LAYERS = ["stem.0", "block.conv1", "block.conv2", "block.short.0", "fc"]

Hooks = Callable[[nn.Module], dict[str, nn.Module]]
QUICK = ZeroShotConfig(distill_steps=3, distilled_images=32, validation_images=8, steps=10)


def close(quantized: nn.Module, model: nn.Module, images: Tensor) -> None:
    """The quantized model computes nearly what the float one does."""
    with torch.no_grad():
        expected = model(images)
        assert (quantized(images) - expected).norm() < 0.2 * expected.norm()


def test_weights_are_pwlq_levels_of_the_folded_weights(
    net: nn.Module, images: Tensor, quantized: nn.Module
) -> None:
    folded = dict(fold_batch_norm(net).named_modules())
    seen = {}
    for module in quantized.modules():
        if isinstance(module, PWLQWeightQuantizer):
            value = quantized.get_parameter(module.weight).detach()
            seen[module.weight.removesuffix(".weight")] = module.quantize(value)
    assert sorted(seen) == sorted(LAYERS)
    for name, value in seen.items():
        expected = quantize(folded[name].weight.detach(), FAST).dequantize()
        assert torch.equal(value, expected), name
    close(quantized, net, images)
    assert not quantized.training


def test_the_users_model_is_not_touched(net: nn.Module, images: Tensor) -> None:
    net.train()
    before = copy.deepcopy(net.state_dict())
    options = {"advanced_parameters": AdvancedQuantizationParameters()}
    zaq_nncf.quantize(net, [images], FAST, **options)
    assert net.training
    assert set(net.state_dict()) == set(before)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert options["advanced_parameters"] == AdvancedQuantizationParameters()
    assert type(net).__name__ == "Net"
    assert "forward" not in vars(net)


def loader(images: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=4)


CALIBRATIONS: dict[str, Callable[[Tensor], Iterable[Any] | nncf.Dataset]] = {
    "tensors": lambda x: list(x.split(4)),
    "generator": lambda x: (part for part in x.split(4)),
    "DataLoader": loader,
    "mappings": lambda x: [{"x": part} for part in x.split(4)],
    "endless": lambda x: itertools.cycle([(part, None) for part in x.split(4)]),
    "nncf.Dataset": lambda x: nncf.Dataset(loader(x), lambda pair: pair[0]),
}


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_whatever_holds_the_images_the_ranges_are_theirs(
    net: nn.Module, images: Tensor, hooks: Hooks, kind: str
) -> None:
    """The input's range is the images' own: its mean over batches, symmetric, as NNCF measures."""
    student = zaq_nncf.quantize(net, CALIBRATIONS[kind](images), FAST, subset_size=8)
    scale, zero_point = hooks(student)["post_hooks.x__0.0"].calculate_qparams()
    reach = images.abs().amax()
    # NNCF's estimator averages maxima over images or batches.
    assert int(zero_point) == 0
    assert 0.6 * reach < 127 * float(scale) <= reach * 1.001
    assert len(zaq_nncf.audit(student).quantized) == len(LAYERS)


def test_images_of_a_zero_shot_loader(net: nn.Module, quantized: nn.Module, hooks: Hooks) -> None:
    source = ZeroShotLoader(quantized, (3, 12, 12), QUICK, float_model=net)
    student = zaq_nncf.quantize(net, source, FAST)
    assert source.step == 0
    scale, _ = hooks(student)["post_hooks.x__0.0"].calculate_qparams()
    assert 127 * float(scale) <= float(source.source.pool.abs().max()) * 1.001


def test_images_of_a_generator(net: nn.Module, quantized: nn.Module, images: Tensor) -> None:
    config = QUICK.with_changes(
        images="generator", warmup_steps=2, latent_dim=8, generator_width=8, batch_size=8
    )
    source = ZeroShotLoader(quantized, (3, 12, 12), config, float_model=net)
    close(zaq_nncf.quantize(net, source, FAST, subset_size=16), net, images)


def test_without_data_images_come_from_the_model(net: nn.Module, images: Tensor) -> None:
    def make(seed: int) -> Tensor:
        config = QUICK.with_changes(seed=seed)
        student = zaq_nncf.quantize(net, None, FAST, image_shape=(3, 12, 12), config=config)
        close(student, net, images)
        return student(images)

    assert torch.equal(make(0), make(0))
    assert not torch.equal(make(0), make(1))


@pytest.mark.parametrize(("trains", "count"), [(False, 32), (True, 300)])
def test_as_many_images_are_made_as_elsewhere(net: nn.Module, trains: bool, count: int) -> None:
    assert (CALIBRATION_IMAGES, TRAINING_IMAGES) == (32, 384)  # 300 is NNCF's own subset_size
    config = ZeroShotConfig(distill_steps=0)
    made, _ = as_dataset(
        None, net, 300, image_shape=(3, 12, 12), mean=None, std=None, config=config, trains=trains
    )
    assert sum(len(batch) for batch in made.get_inference_data()) == count


def test_a_model_that_says_its_own_image_shape(net: nn.Module, images: Tensor) -> None:
    net.pretrained_cfg = {"input_size": (3, 12, 12), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    close(zaq_nncf.quantize(net, None, FAST, config=QUICK), net, images)


def test_without_data_and_shape_the_error_says_what_to_pass(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"image_shape=\(channels, height, width\), and mean"):
        zaq_nncf.quantize(net)


@pytest.mark.parametrize(
    ("calibration", "error", "text"),
    [
        (torch.zeros(4, 3, 12, 12), TypeError, r"one batch; pass images.split\(32\)"),
        (7, TypeError, "an iterable of batches, a ZeroShotLoader, or None .* got int"),
        ([], ValueError, "there is no batch in it"),
        (nncf.Dataset([]), ValueError, "nncf.Dataset is empty"),
        (["a text"], TypeError, "a batch must be a tensor"),
    ],
)
def test_calibration_that_is_none(
    net: nn.Module, calibration: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        zaq_nncf.quantize(net, calibration, FAST)


@pytest.mark.parametrize("preset", list(nncf.QuantizationPreset), ids=str)
def test_presets(net: nn.Module, images: Tensor, hooks: Hooks, preset: Any) -> None:
    quantizers = hooks(zaq_nncf.quantize(net, [images], FAST, preset=preset))
    kinds = {type(m) for name, m in quantizers.items() if name.startswith("post_hooks")}
    mixed = preset == nncf.QuantizationPreset.MIXED
    assert kinds == {AsymmetricActivationQuantizer if mixed else SymmetricActivationQuantizer}
    relu = quantizers["post_hooks.stem/2/relu/0__0.0"]
    assert (relu.grid.quant_min, relu.grid.quant_max) == (0, 255)
    entry = quantizers["post_hooks.x__0.0"]
    assert (entry.grid.quant_min, entry.grid.quant_max) == ((0, 255) if mixed else (-128, 127))


@pytest.mark.parametrize("device", ["ANY", "CPU", "GPU", "NPU"])
def test_target_devices(net: nn.Module, images: Tensor, device: str) -> None:
    student = zaq_nncf.quantize(net, [images], FAST, target_device=nncf.TargetDevice[device])
    assert [r.name for r in zaq_nncf.audit(student).quantized] == LAYERS
    close(student, net, images)


def test_the_ranges_are_nncfs_own(net: nn.Module, images: Tensor, hooks: Hooks) -> None:
    """Against plain NNCF on the same folded model, per-tensor activations: scales bit for bit."""
    chosen = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.DISABLE,
        activations_quantization_params=QuantizationParameters(per_channel=False),
        disable_bias_correction=True,
    )
    for preset in nncf.QuantizationPreset:
        options = {"preset": preset, "advanced_parameters": chosen}
        plain = nncf.quantize(zaq_nncf.prepare_model(net), nncf.Dataset([images]), **options)
        ours = hooks(zaq_nncf.quantize(net, nncf.Dataset([images]), FAST, **options))
        for name, native in hooks(plain).items():
            if not name.startswith("post_hooks"):
                continue
            low, high, scale, zero_point = native.get_parameters_for_torch_fq()
            mine = ours[name].get_parameters_for_torch_fq()
            assert mine[:2] == (low, high), name
            assert torch.equal(mine[2], scale.reshape(1)), name
            assert torch.equal(mine[3], zero_point.reshape(1)), name


def test_ignored_scope(net: nn.Module, images: Tensor) -> None:
    scope = nncf.IgnoredScope(patterns=["fc/.*"])
    records = zaq_nncf.audit(zaq_nncf.quantize(net, [images], FAST, ignored_scope=scope))
    assert [r.name for r in records.skipped] == ["fc"]
    assert "patterns=['fc/.*']" in records["fc"].reason


def test_nothing_quantized_is_an_error(net: nn.Module, images: Tensor) -> None:
    scope = nncf.IgnoredScope(types=["conv2d", "linear"])
    with pytest.raises(ValueError, match="nothing was quantized: all 5 layers"):
        zaq_nncf.quantize(net, [images], FAST, ignored_scope=scope)


def test_formats_by_name_and_pattern(net: nn.Module, images: Tensor) -> None:
    overrides = {
        "block": PWLQSpec(bits=6),
        "*.conv2": UniformSpec(8),
        "block.short.0": PWLQSpec(bits=3),
        "fc": None,
    }
    student = zaq_nncf.quantize(net, [images], FAST, overrides=overrides)
    bits = {r.name: (r.mac_bits, r.stored_bits) for r in zaq_nncf.audit(student)}
    assert bits["stem.0"] == (4, 5)
    assert bits["block.conv1"] == (6, 7)
    assert bits["block.short.0"] == (3, 4)
    assert bits["fc"] == (8, 8)
    assert bits["block.conv2"] == (8, 8)  # the pattern is more specific than the module's name
    assert zaq_nncf.audit(student)["fc"].spec == "uniform 8b MAC/8b stored (NNCF's own)"
    close(student, net, images)


def test_an_override_for_no_layer(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"no layer matches 'nowhere\.\*'.*stem\.0, block\.conv1"):
        zaq_nncf.quantize(net, [images], FAST, overrides={"nowhere.*": None})


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"spec": 4}, TypeError, "spec: expected a format such as a PWLQSpec; got 4"),
        (
            {"overrides": {"fc": 4}},
            TypeError,
            r"overrides\['fc'\]: expected a format such as a PWLQSpec",
        ),
        ({"overrides": {3: None}}, TypeError, "a key is a layer's name, a pattern"),
        (
            {"overrides": {nn.Conv2d: (FAST, 8)}},
            TypeError,
            r"overrides\[Conv2d\]: expected a format .* got the pair .*NNCF places activations'",
        ),
        ({"activations": 9}, ValueError, "activations must have 2 to 8 bits; got 9"),
        ({"activations": None}, TypeError, "activations must be a number of bits"),
    ],
)
def test_arguments(
    net: nn.Module, images: Tensor, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        zaq_nncf.quantize(net, [images], **options)


@pytest.mark.parametrize("fix", [OverflowFix.ENABLE, OverflowFix.FIRST_LAYER])
def test_overflow_fix_is_refused(net: nn.Module, images: Tensor, fix: OverflowFix) -> None:
    chosen = AdvancedQuantizationParameters(overflow_fix=fix)
    with pytest.raises(ValueError, match="halves the int8 range"):
        zaq_nncf.quantize(net, [images], FAST, advanced_parameters=chosen)


def test_weights_that_are_not_finite(net: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        net.fc.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"fc \(Linear\): 1 of 96 weights are NaN or infinite"):
        zaq_nncf.quantize(net, [images], FAST)


def test_narrow_activations(net: nn.Module, images: Tensor, hooks: Hooks) -> None:
    """4 bits before multipliers, 8 at the input and before the sum; not more levels than that."""
    student = zaq_nncf.quantize(net, list(images.split(4)), FAST, activations=4)
    bits = {n: m.bits for n, m in hooks(student).items() if n.startswith("post_hooks")}
    assert bits["post_hooks.x__0.0"] == 8
    assert bits["post_hooks.stem/2/relu/0__0.0"] == 4
    assert bits["post_hooks.block/conv2/conv2d/0__0.0"] == 8  # only added
    assert bits["post_hooks.pool/adaptive_avg_pool2d/0__0.0"] == 4
    assert {r.activation for r in zaq_nncf.audit(student)} == {
        "uniform 8 bits per tensor",
        "uniform 4 bits per tensor",
    }
    seen: list[Tensor] = []
    student.stem.register_forward_hook(lambda module, args, output: seen.append(output))
    student(images)
    assert 8 < len(seen[0].unique()) <= 16
    close(student, net, images)


class Trunk(nn.Module):
    """What a convolution reads is added to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        trunk = self.pool(self.stem(x).relu())
        return self.fc((self.conv(trunk) + trunk).relu().mean((2, 3)))


def test_a_trunk_is_wide_where_it_is_added_and_narrow_where_it_is_multiplied(
    images: Tensor, hooks: Hooks
) -> None:
    torch.manual_seed(3)
    net = Trunk().eval()
    student = zaq_nncf.quantize(net, [images], FAST, activations=3, bias_correction=None)
    bits = {n: m.bits for n, m in hooks(student).items() if hasattr(m, "bits")}
    assert bits["post_hooks./relu/0__0.0"] == 8
    assert bits["pre_hooks.conv/conv2d/0__0.0"] == 3
    assert zaq_nncf.audit(student)["conv"].activation == "uniform 3 bits per tensor"
    seen: list[tuple[Tensor, Tensor]] = []
    hooks(student)["pre_hooks.conv/conv2d/0__0.0"].register_forward_hook(
        lambda module, args, output: seen.append((args[0], output))
    )
    with torch.no_grad():
        expected = student(images)
    ((trunk, multiplied),) = seen
    assert len(multiplied.unique()) <= 8
    assert len(trunk.unique()) > 64
    torch.testing.assert_close(zaq_nncf.strip(student)(images), expected)


def test_an_observer_of_ones_own(net: nn.Module, images: Tensor, hooks: Hooks) -> None:
    from zaq_plugin.observers import MinMaxObserver

    student = zaq_nncf.quantize(net, [images], FAST, activations=4, observer=MinMaxObserver)
    grid = hooks(student)["post_hooks.stem/2/relu/0__0.0"].grid
    with torch.no_grad():
        largest = net.stem(images).max()
    # The input is quantized, the float model's is not.
    assert 15 * float(grid.scale) == pytest.approx(float(largest), rel=0.02)


def test_half_precision(net: nn.Module, images: Tensor) -> None:
    student = zaq_nncf.quantize(net.half(), [images.half()], FAST)
    out = student(images.half())
    assert out.dtype == torch.float16
    assert bool(out.isfinite().all())
