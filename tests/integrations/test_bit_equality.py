"""Same levels everywhere: one proof for all hosts.

For each host, after training and after calibration alone: the converted model's integer weight,
dequantized, equals the fake-quantizer's output and ``quantize(...).dequantize()``, bit for bit;
and the converted model computes what the prepared one did, within one step of its output.

A host is one function that takes a float model and returns an `Outcome`; to add one, write it and
put it into `HOSTS`.
"""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from networks import Block, Net, perturb
from torch import Tensor, nn

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.pwlq import PWLQSpec, quantize


class Weights(NamedTuple):
    """One layer: the folded float weight, the fake-quantizer's output, the converted weight."""

    name: str
    floating: Tensor
    fake_quantized: Tensor
    converted: Tensor
    edges: Tensor | None  # frozen by training, None if the policy solves them
    elsewhere: tuple[tuple[str, Tensor], ...] = ()  # what runtimes compute with, by name


class Outcome(NamedTuple):
    """What a host made of the model."""

    layers: list[Weights]
    prepared_output: Tensor
    converted_output: Tensor
    output_step: float
    ties: tuple[Tensor, ...] = ()  # the prepared output again, with ties rounded otherwise


LAYERS = 5


def model_and_images() -> tuple[nn.Module, Tensor]:
    """The network with perturbed BatchNorm statistics, and images."""
    torch.manual_seed(0)
    model = perturb(Net(10))
    return model, torch.randn(8, 3, 17, 17)


def train(model: nn.Module, images: Tensor) -> None:
    """A few steps of training, enough to move every weight and BatchNorm."""
    target = torch.randn(len(images), 10, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(images), target).backward()
        optimizer.step()


def fx(model: nn.Module, images: Tensor, spec: PWLQSpec, qat: bool) -> Outcome:
    """torch.ao FX graph mode, with the stock functions throughout."""
    from torch.ao.quantization import disable_observer
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

    import zaq_fx
    from zaq_fx.layers import layers_of

    backend = zaq_fx.pwlq_backend_config()
    ties: tuple[Tensor, ...] = ()
    if qat:
        mapping = zaq_fx.pwlq_qat_qconfig_mapping(spec)
        prepared = prepare_qat_fx(model.train(), mapping, (images,), backend_config=backend)
        train(prepared, images)
        prepared.apply(disable_observer)
        train(prepared, images)  # with frozen edges
        prepared.eval()
        simulated = prepared(images)
    else:
        mapping = zaq_fx.pwlq_qconfig_mapping(spec)
        prepared = prepare_fx(model, mapping, (images,), backend_config=backend)
        prepared(images)
        model = _simulated(prepared, spec)
        simulated = model(images)
        ties = tuple(_nudged(model, by)(images).detach() for by in (-TIE, TIE))
    step = float(
        dict(zaq_fx.activations.watcher_nodes(prepared)).popitem()[1].calculate_qparams()[0]
    )
    before = {}
    for layer in layers_of(prepared):
        weight = layer.root.weight.detach()
        if qat:
            fake = layer.module.weight_fake_quant
            edges = fake.edges
        else:
            fake, edges = PWLQPerChannelFakeQuantize(spec), None
        before[layer.name] = (weight, fake(weight).detach(), edges)
    converted = convert_fx(prepared, backend_config=backend)
    layers = []
    for name, (weight, faked, edges) in before.items():
        stored = zaq_fx.integer_weight(converted.get_submodule(name)).dequantize()
        layers.append(Weights(name, weight, faked, stored, edges))
    return Outcome(layers, simulated.detach(), converted(images), step, ties)


TIE = 3e-6
"""Relative: what float sums differ by from processor to processor, a few dozen last places."""


def _nudged(model: nn.Module, by: float) -> nn.Module:
    """Every activation a bit larger or smaller, which moves none but those between two steps."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, _Affine):
            module.factor = 1 + by
    return model


def _simulated(prepared: nn.Module, spec: PWLQSpec) -> nn.Module:
    """A calibrated model with quantized weights, and torch's operator in each observer's place."""
    from zaq_fx.activations import watcher_nodes
    from zaq_fx.layers import root_of

    model = copy.deepcopy(prepared)
    for node, watcher in list(watcher_nodes(model)):
        scale, zero_point = watcher.calculate_qparams()
        fake = _Affine(float(scale), int(zero_point), watcher.quant_min, watcher.quant_max)
        model.set_submodule(str(node.target), fake)
    for module in model.modules():
        root = root_of(module) if not list(module.children()) else None
        if root is not None:
            root.weight.data = quantize(root.weight.detach(), spec).dequantize()
    return model


class _Affine(nn.Module):
    def __init__(self, *qparams: float) -> None:
        super().__init__()
        self.qparams, self.factor = qparams, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(self.factor * x, *self.qparams)


def pt2e(model: nn.Module, images: Tensor, spec: PWLQSpec, qat: bool) -> Outcome:
    """torchao PT2E, with the stock functions throughout."""
    from torchao.quantization.pt2e import disable_observer
    from torchao.quantization.pt2e.quantize_pt2e import (
        convert_pt2e,
        prepare_pt2e,
        prepare_qat_pt2e,
    )

    import zaq_pt2e
    from zaq_pt2e.graph import constant_value, layers

    exported = torch.export.export(model, (images,)).module()
    quantizer = zaq_pt2e.PWLQQuantizer(spec, qat=qat, bias_correction=False)
    if qat:
        prepared = prepare_qat_pt2e(exported, quantizer)
        zaq_pt2e.set_training(prepared, True)
        train(prepared, images)
        prepared.apply(disable_observer)
        train(prepared, images)  # with frozen edges
        zaq_pt2e.set_training(prepared, False)
        simulated = prepared
    else:
        prepared = prepare_pt2e(exported, quantizer)
        prepared(images)
        simulated = copy.deepcopy(prepared)
        for node in list(simulated.graph.nodes):
            watcher = simulated.get_submodule(node.target) if node.op == "call_module" else None
            if hasattr(watcher, "spec"):
                simulated.set_submodule(node.target, PWLQPerChannelFakeQuantize(spec))
            elif hasattr(watcher, "calculate_qparams"):
                scale, zero_point = watcher.calculate_qparams()
                grid = (float(scale), int(zero_point), watcher.quant_min, watcher.quant_max)
                simulated.set_submodule(node.target, _Affine(*grid))
    output = simulated(images).detach()
    before, step = {}, 0.0
    for layer in layers(simulated):
        activation, weight = layer.node.args[:2]
        fake = simulated.get_submodule(str(weight.target))
        value = constant_value(simulated, weight.args[0])
        before[layer.name] = (value, fake(value).detach(), fake.edges if qat else None)
        step = float(prepared.get_submodule(activation.target).calculate_qparams()[0])
    converted = convert_pt2e(prepared)
    weights = []
    for layer in layers(converted):
        stored = constant_value(converted, layer.node.args[1])
        weights.append(Weights(layer.name, *before[layer.name][:2], stored, before[layer.name][2]))
        integers = constant_value(converted, layer.node.args[1].args[0])
        assert integers.dtype == torch.int8, layer.name
    return Outcome(weights, output, converted(images).detach(), step)


def nncf(model: nn.Module, images: Tensor, spec: PWLQSpec, qat: bool) -> Outcome:
    """NNCF, and what ONNX Runtime and OpenVINO make of the stripped model."""
    import zaq_nncf
    from zaq_nncf.activation_quantizers import ActivationQuantizer
    from zaq_nncf.audit import weight_quantizers

    prepared = zaq_nncf.quantize(model, [images], spec)
    if qat:
        train(prepared.train(), images)
        prepared.eval()
    output = prepared(images).detach()
    before, edges = {}, {}
    for name, quantizer in weight_quantizers(prepared):
        value = prepared.get_parameter(name).detach().clone()
        before[name] = (value, quantizer.grid(value).detach())
        edges[name] = quantizer.grid.edges if qat else None
    grids = [m.grid for m in prepared.modules() if isinstance(m, ActivationQuantizer)]
    stripped = zaq_nncf.strip(prepared)
    assert torch.equal(stripped(images), output)
    assert [r.name for r in zaq_nncf.audit(stripped).quantized] == [
        "stem.0",
        "block.conv1",
        "block.conv2",
        "block.short.0",
        "fc",
    ]
    runtimes: dict[str, list[Tensor]] = {}
    if spec.breakpoints == 1 and not qat:  # an export takes seconds
        output_there, runtimes["ONNX Runtime"] = _onnx_runtime(stripped, images)
        _, runtimes["OpenVINO"] = _openvino(stripped, images)
    else:
        output_there = stripped(images).detach()
    records = []
    for position, (name, (value, faked)) in enumerate(before.items()):
        stored = stripped.get_parameter(name)
        there = tuple((key, weights[position]) for key, weights in runtimes.items())
        label = name.removesuffix(".weight")
        records.append(Weights(label, value, faked, stored, edges[name], there))
    return Outcome(records, output, output_there, float(max(g.scale for g in grids)))


def _onnx_runtime(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What ONNX Runtime computes, and the weights of its layers in order of execution."""
    import onnx
    import onnxruntime

    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    proto = program.model_proto
    layers = [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    for node in layers:
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.input[1]))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    output, *weights = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(output), [torch.from_numpy(w) for w in weights]


def _openvino(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What OpenVINO computes, and the weights of its layers in order of execution."""
    import openvino

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.trace", FutureWarning)
        converted = openvino.convert_model(model, example_input=images)
    output = openvino.compile_model(converted, "CPU")(images.numpy())[0]
    weights = []
    for node in converted.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            alone = openvino.Model([node.input_value(1)], [])
            weights.append(torch.from_numpy(openvino.compile_model(alone, "CPU")([])[0].copy()))
    return torch.from_numpy(output), weights


Host = Callable[[nn.Module, Tensor, PWLQSpec, bool], Outcome]
HOSTS: dict[str, Host] = {"fx": fx, "pt2e": pt2e, "nncf": nncf}

SPECS = [
    pytest.param(PWLQSpec(bits=b, breakpoints=n), marks=[pytest.mark.slow] * (b != 4))
    for b in (3, 4, 5, 6)
    for n in (1, 2)
]
SPECS += [PWLQSpec(bits=4, symmetry="symmetric", policy="laplacian", shared_endpoints=True)]


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS.keys())
@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"b{s.bits}n{s.breakpoints}{s.symmetry[0]}")
def test_same_levels_everywhere(host: Host, qat: bool, spec: PWLQSpec) -> None:
    model, images = model_and_images()
    outcome = host(model, images, spec, qat)
    assert len(outcome.layers) == LAYERS
    for layer in outcome.layers:
        expected = quantize(layer.floating, spec, edges=layer.edges)
        assert torch.equal(layer.fake_quantized, expected.dequantize()), layer.name
        assert torch.equal(layer.converted, expected.dequantize()), layer.name
        for runtime, there in layer.elsewhere:
            # A runtime may see a depthwise weight with an axis of groups.
            same = there.reshape(layer.floating.shape)
            assert torch.equal(same, expected.dequantize()), f"{layer.name} in {runtime}"
        levels = max(len(row.unique()) for row in layer.converted.flatten(1))
        assert levels <= spec.num_levels, layer.name
        assert (layer.converted - layer.floating).abs().max() > 0, layer.name
    assert outcome.converted_output.std() > 0
    # The pooled channels of a whole image lie between two steps. Which way they go is a matter of
    # float's last place, and of the processor: either is the prepared model's answer.
    answers = torch.stack([outcome.prepared_output, *outcome.ties])
    difference = (outcome.converted_output - answers).abs().amin(0)
    # A tie that an inner grid rounds the other way moves few answers, by a step or two.
    assert difference.max() <= 2.001 * outcome.output_step
    assert (difference > 0.5 * outcome.output_step).float().mean() <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("bits", [3, 4])
def test_exported_and_unpacked_weights_are_the_same_levels(
    bits: int, qat: bool, tmp_path: Path
) -> None:
    """From simulation to a packed ONNX file, and back out of it, through both readers of files."""
    import onnx
    import onnxruntime
    from layers import float_weight, quantized_layers, weight_fake_quant

    import zaq_onnx
    from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate

    model, images = model_and_images()
    # Wide enough for codes and codebooks to be smaller than the integers.
    model.stem = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    model.block, model.fc = Block(64, 32, depthwise=True), nn.Linear(32, 10)
    model.eval()
    spec = PWLQSpec(bits=bits)
    student = simulate(fold_batch_norm(model, (images,)), spec, depthwise="as-told")
    calibrate(student, [images])
    if qat:
        train(student, images)
    packed, plain = tmp_path / "packed.onnx", tmp_path / "plain.onnx"
    zaq_onnx.export(student, (images,), packed)
    zaq_onnx.unpack(packed, plain)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(plain).graph.initializer}
    proto = onnx.load(packed)
    nodes = {node.input[0]: node for node in proto.graph.node if node.input}
    named_layers = list(quantized_layers(student))
    for name, _ in named_layers:  # what ONNX Runtime unfolds and dequantizes
        output = nodes[f"{name}.weight"].output[0]
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    kinds = {t.name for t in proto.graph.initializer}
    assert "block.conv1.weight" not in kinds, "stored as codes and codebooks"
    widths = {layer.name: layer.stored_bits for layer in zaq_onnx.info(packed).layers}
    assert widths["block.conv1"] == bits + 1
    _, *running = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert len(named_layers) == LAYERS
    for (name, layer), there in zip(named_layers, running, strict=True):
        quantizer = weight_fake_quant(layer)
        assert quantizer is not None
        edges = quantizer.edges.detach()
        expected = quantize(float_weight(layer).detach(), spec, edges=edges)
        assert torch.equal(layer.weight, expected.dequantize()), name
        assert torch.equal(torch.from_numpy(there), expected.dequantize()), name
        integers = torch.from_numpy(stored[f"{name}.weight"].copy())
        assert torch.equal(integers, expected.integer_weight()), name
        assert torch.equal(torch.from_numpy(stored[f"{name}.scale"].copy()), expected.scale), name


@pytest.mark.slow
@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize(
    ("tool", "needs"), [("executorch", "executorch"), ("litert", "litert_torch")]
)
def test_files_for_devices_hold_the_same_levels(
    tool: str, needs: str, qat: bool, tmp_path: Path
) -> None:
    """From a student to a `.pte` or `.tflite` file, and back out of its bytes."""
    import importlib

    from zaq_plugin.ptq import calibrate
    from zaq_plugin.student import student_of
    from zaq_plugin.student.host import Assignment, find_host
    from zaq_pt2e import set_training

    pytest.importorskip(needs, reason=f"pip install 'zaq_plugin[{tool}]'")
    package, reading = (importlib.import_module(f"zaq_{tool}{x}") for x in ("", ".reading"))
    model, images = model_and_images()
    host = find_host(tool)
    prepared = host.prepare(model, (images,), Assignment(PWLQSpec(bits=4)), train=qat).model
    calibrate(prepared, [images])
    if qat:
        set_training(prepared, True)
        train(prepared, images)
        set_training(prepared, False)
    levels = {n: x.quantized().detach() for n, x in student_of(prepared).layers().items()}
    path = tmp_path / "net"
    package.export(host.convert(prepared), (images[:1],), path)
    there = [
        torch.from_numpy(codes.copy()).float() * torch.from_numpy(scales.copy()).reshape(shape)
        for codes, scales in reading.read(path).weights
        for shape in [[1] * (codes.ndim - 1) + [-1] if codes.shape[0] == 1 < codes.ndim - 2
                      else [-1] + [1] * (codes.ndim - 1)]
    ]  # fmt: skip
    assert len(levels) == len(there) == LAYERS
    for name, weight in levels.items():
        depthwise = weight.dim() == 4 and weight.shape[1] == 1
        order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
        moved = weight.permute(order) if weight.dim() == 4 else weight
        assert any(x.shape == moved.shape and torch.equal(x, moved) for x in there), name
