"""From a float model to int8 kernels: engines, widths of activations, training, saving."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx

import zaq_fx
from zaq_fx.activations import watcher_nodes
from zaq_fx.layers import layers_of
from zaq_plugin.observers import MinMaxObserver, PercentileObserver, TopKMedianObserver
from zaq_plugin.pwlq import PWLQSpec, quantize

FOUR = PWLQSpec(bits=4)
ENGINES = [e for e in torch.backends.quantized.supported_engines if e != "none"]


def step_of(prepared):
    return float([w for _, w in watcher_nodes(prepared)][-1].calculate_qparams()[0])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("qat", [False, True])
def test_every_engine_runs_the_same_levels(make_net, images, engine, qat):
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        prepared = zaq_fx.prepare(make_net(), (images,), FOUR, qat=qat)
        zaq_fx.calibrate(prepared, [images])
        expected = {layer.name: layer.quantized().dequantize() for layer in layers_of(prepared)}
        reference = zaq_fx.convert(prepared, reference=True)
        converted = zaq_fx.convert(prepared)
        assert len(expected) == 3
        for name, weight in expected.items():
            for model in (converted, reference):
                stored = zaq_fx.integer_weight(_first(model.get_submodule(name))).dequantize()
                assert torch.equal(stored, weight), name
        difference = (converted(images) - reference(images)).abs().max()
        steps = 2 if engine == "fbgemm" else 1  # it rounds a mean's output once more
        assert difference <= 1.001 * steps * step_of(prepared)
        assert all(engine in record.kernel for record in zaq_fx.audit(converted).quantized)
    finally:
        torch.backends.quantized.engine = before


def _first(module):
    return module[0] if isinstance(module, nn.Sequential) else module


@pytest.mark.parametrize("observer", [MinMaxObserver, PercentileObserver, TopKMedianObserver])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_narrow_activations_are_exact_on_int8_kernels(make_net, images, bits, observer):
    prepared = zaq_fx.prepare(make_net(), (images,), FOUR, bits, qat=True, observer=observer)
    zaq_fx.calibrate(prepared, [images])
    prepared.eval()
    converted = zaq_fx.convert(prepared)
    loud = 4 * images  # far beyond every range
    expected, step = prepared(loud).detach(), step_of(prepared)
    # A flip of rounding by one narrow step may grow to a few output steps, rarely.
    assert_close_in_steps(converted(loud), expected, step)
    inputs = zaq_fx.audit(converted)
    assert inputs["conv"].activation == f"uniform {bits} bits per tensor"
    assert inputs["stem"].activation == "uniform 8 bits per tensor"
    reference = zaq_fx.convert(prepared, reference=True)
    assert_close_in_steps(reference(loud), expected, step)
    if bits < 8:
        stock = convert_fx(copy.deepcopy(prepared), backend_config=zaq_fx.pwlq_backend_config())
        with pytest.raises(AssertionError):
            assert_close_in_steps(stock(loud), expected, step)


def assert_close_in_steps(out, expected, step):
    steps = (out - expected).abs() / step
    assert steps.median() < 0.01
    assert steps.max() < 4.01


def test_only_inputs_of_layers_are_narrow(make_net, images):
    prepared = zaq_fx.prepare(make_net(), (images,), FOUR, 4, input_bits=7)
    bits = {str(n.args[0]): w.bits for n, w in watcher_nodes(prepared)}
    assert bits["x"] == 7
    assert bits["fc"] == 8
    first = next(n for n, _ in watcher_nodes(prepared) if str(n.args[0]) == "stem")
    assert bits["stem"] == 8  # read by the sum, and by the convolution:
    assert bits[first.name] == 4  # through a grid of its own
    assert [str(n) for n in first.users if n.op == "call_module"] == [f"{first.name}_multiplied"]
    assert next(b for name, b in bits.items() if name.startswith("conv")) == 8  # only added
    output = next(w for n, w in watcher_nodes(prepared) if str(n.args[0]) == "fc")
    assert isinstance(output.activation_post_process, MinMaxObserver)


@pytest.mark.parametrize("qat", [False, True])
def test_a_trunk_is_wide_where_it_is_added_and_narrow_where_it_is_multiplied(make_net, images, qat):
    prepared = zaq_fx.prepare(make_net(), (images,), FOUR, 3, qat=qat)
    zaq_fx.calibrate(prepared, [images])
    converted = zaq_fx.convert(prepared)
    read = {}

    class Reader(torch.fx.Interpreter):
        def run_node(self, node):
            for argument in node.all_input_nodes:
                if node.target in ("conv", torch.ops.quantized.add_relu):
                    read.setdefault(str(node.target), []).append(self.env[argument])
            return super().run_node(node)

    Reader(converted).run(images)
    (multiplied,) = read["conv"]
    assert len(multiplied.int_repr().unique()) <= 8
    trunk = next(
        x
        for x in read[str(torch.ops.quantized.add_relu)]
        if x.shape == multiplied.shape and x.dim() == 4 and float(x.dequantize().min()) >= 0
    )
    assert len(trunk.int_repr().unique()) > 64
    kernels = {r.name: r.kernel for r in zaq_fx.audit(converted)}
    assert all("int8" in kernel for kernel in kernels.values()), kernels
    assert "3 bits" in zaq_fx.audit(converted)["conv"].activation


def test_pwlq_activations_train_but_do_not_convert(make_net, images):
    prepared = zaq_fx.prepare(make_net(), (images,), FOUR, PWLQSpec(bits=4), qat=True)
    zaq_fx.calibrate(prepared, [images])
    prepared(images).sum().backward()
    assert prepared.fc.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="simulated: no int8 kernel"):
        zaq_fx.convert(prepared)


@pytest.mark.parametrize("learnable", [False, True])
def test_training_lowers_the_loss_and_converts(make_net, images, learnable):
    model = make_net()
    target = model(images).detach()
    prepared = zaq_fx.prepare(model, (images,), PWLQSpec(bits=3), 4, qat=True, learnable=learnable)
    zaq_fx.calibrate(prepared, [images])
    prepared.eval()  # BatchNorm frozen
    optimizer = torch.optim.Adam(prepared.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(prepared(images), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < 0.7 * losses[0]
    if learnable:
        for module in prepared.modules():
            if hasattr(module, "theta"):
                assert module.theta.grad.abs().sum() > 0
    converted = zaq_fx.convert(prepared)
    assert (converted(images) - prepared(images)).abs().max() <= 1.001 * step_of(prepared)


def test_zero_gamma_trains(make_net, images):
    """timm starts the last BatchNorm of each block at zero."""
    model = make_net()
    nn.init.zeros_(model.bn2.weight)
    with torch.no_grad():
        model.bn.weight[2] = 0
    prepared = zaq_fx.prepare(model, (images,), FOUR, qat=True)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(images).square().mean().backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in prepared.parameters())
    assert prepared.conv.bn.weight.abs().min() > 0
    prepared.apply(torch.ao.quantization.disable_observer)
    prepared.eval()
    converted = zaq_fx.convert(prepared)
    assert torch.isfinite(converted(images)).all()
    assert (converted(images) - prepared(images)).abs().max() <= 1.001 * step_of(prepared)


@pytest.mark.parametrize("qat", [False, True])
def test_a_prepared_state_loads_into_a_fresh_one(make_net, images, qat):
    def prepare():
        model = make_net()
        model.fc = nn.Sequential(nn.Linear(8, 5, bias=False), nn.ReLU(), nn.Linear(5, 6))
        spec = PWLQSpec(bits=4, breakpoints=2)
        return zaq_fx.prepare(model, (images,), spec, qat=qat)

    torch.manual_seed(0)
    prepared = prepare()
    zaq_fx.calibrate(prepared, [images])
    buffer = io.BytesIO()
    torch.save(prepared.state_dict(), buffer)
    buffer.seek(0)
    fresh = prepare()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(zaq_fx.convert(fresh)(images), zaq_fx.convert(prepared)(images))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_converted_model_is_scripted_saved_and_loaded(make_net, images, bits):
    def make():
        prepared = zaq_fx.prepare(make_net(), (images,), FOUR, bits)
        return zaq_fx.convert(zaq_fx.calibrate(prepared, [images]))

    converted = make()
    expected = converted(images)
    assert torch.equal(torch.jit.script(converted)(images), expected)
    assert torch.equal(torch.jit.trace(converted, images)(images), expected)
    buffer = io.BytesIO()
    torch.save(converted.state_dict(), buffer)
    buffer.seek(0)
    prepared = zaq_fx.prepare(make_net(), (images,), PWLQSpec(bits=6), bits)
    other = zaq_fx.convert(zaq_fx.calibrate(prepared, [2 * images]))
    assert not torch.equal(other(images), expected)
    if bits == 8:  # clamps of narrower activations are constants of the graph
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(images), expected)


@pytest.mark.slow
def test_a_prepared_model_compiles(make_net, images):
    prepared = zaq_fx.prepare(make_net(), (images,), FOUR, 4, qat=True)
    zaq_fx.calibrate(prepared, [images])
    prepared.eval()
    compiled = torch.compile(prepared, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), prepared(images))


def test_stock_reference_conversion_has_the_levels(make_net, images):
    prepared = zaq_fx.prepare(make_net(), (images,), FOUR)
    zaq_fx.calibrate(prepared, [images], bias_correction=False)
    weight = {layer.name: layer.root.weight.detach() for layer in layers_of(prepared)}
    reference = convert_to_reference_fx(prepared, backend_config=zaq_fx.pwlq_backend_config())
    assert torch.equal(reference.fc.get_weight(), quantize(weight["fc"], FOUR).dequantize())
    audit = zaq_fx.audit(reference)
    assert audit["fc"].kernel == "float on int8 levels (reference)"


def test_conversion_draws_no_random_numbers(make_net, images):
    """The host builds layers with random weights, which it replaces; nobody's seed is used up."""
    prepared = zaq_fx.prepare(make_net(), (images,), FOUR)
    zaq_fx.calibrate(prepared, [images])
    before = torch.get_rng_state()
    converted = zaq_fx.convert(prepared)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(zaq_fx.convert(prepared)(images), converted(images))
