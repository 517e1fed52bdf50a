"""Observers against brute force in numpy, and the protocol that both hosts rely on."""

import copy
import inspect

import numpy as np
import pytest
import torch

from zaq_plugin import weight_observer
from zaq_plugin.observers import (
    MinMaxObserver,
    PercentileObserver,
    PWLQPerChannelObserver,
    TopKMedianObserver,
    weight_format,
)
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize, solve_edges
from zaq_plugin.pwlq.functional import complete_edges

ACTIVATION = [MinMaxObserver, PercentileObserver, TopKMedianObserver]


def batches(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 3, 5, 7, generator=generator) * s for s in (1.0, 1.3, 0.9)]


def test_top_k_median_is_the_papers():
    lows, highs = [], []
    watch = TopKMedianObserver(k=10)
    for batch in batches():
        watch(batch)
        ordered = np.sort(batch.double().numpy().ravel())
        lows.append(np.median(ordered[:10]))
        highs.append(np.median(ordered[-10:]))
    assert float(watch.min_val) == pytest.approx(np.mean(lows), rel=1e-6)
    assert float(watch.max_val) == pytest.approx(np.mean(highs), rel=1e-6)
    scale, zero_point = watch.calculate_qparams()
    step = (np.mean(highs) - np.mean(lows)) / 255
    assert float(scale) == pytest.approx(step, rel=1e-6)
    assert int(zero_point) == round(-np.mean(lows) / step)


@pytest.mark.parametrize("numel", [10240, 10241, 40_000, 100_001])
def test_long_tensors_take_the_short_way_to_the_same_range(numel):
    x = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    x[:7] = torch.tensor([9.0, 9.0, 8.0, -7.0, 9.5, -8.0, -8.0])  # neighbours, and ties
    ordered = np.sort(x.numpy())
    watch = TopKMedianObserver()
    watch(x.reshape(1, -1))
    assert float(watch.min_val) == np.float32(np.median(ordered[:10]))
    assert float(watch.max_val) == np.float32(np.median(ordered[-10:]))


def test_small_batches_are_not_clipped():
    logits = torch.arange(40.0)
    watch = TopKMedianObserver(k=10)
    watch(logits)
    assert float(watch.max_val) == 39
    paper = TopKMedianObserver(k=10, share=1.0)
    paper(logits)
    assert float(paper.max_val) == 34.5


def decibels(x: torch.Tensor, watch: TopKMedianObserver) -> float:
    """Signal to noise of x on the observer's grid."""
    scale, zero_point = watch.calculate_qparams()
    low, high = watch.quant_min, watch.quant_max
    on_grid = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
    return float(10 * torch.log10(x.square().sum() / (x - on_grid).square().sum()))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("shape", [(16, 16, 16), (10, 16), (60,)])
def test_the_range_does_not_depend_on_the_size_of_batches(shape, positive):
    """Below 32 a batch gives what 32 give, the paper's rule; 256 images give nearly that."""
    x = torch.randn(256, *shape, generator=torch.Generator().manual_seed(3))
    x = x.relu() if positive else x
    ends, noise = {}, {}
    for size in (1, 8, 32, 256):
        watch = TopKMedianObserver()
        for batch in x.split(size):
            watch(batch)
        ends[size] = (float(watch.min_val), float(watch.max_val))
        noise[size] = decibels(x, watch)
    ordered = [np.sort(batch.numpy().ravel()) for batch in x.split(32)]
    k = min(10, ordered[0].size // 100)
    paper = np.mean([[np.median(o[:k]), np.median(o[-k:])] for o in ordered], 0)
    for size in (1, 8, 32):
        assert ends[size] == pytest.approx(tuple(paper), rel=1e-5, abs=1e-6)
    if len(shape) == 3:
        assert ends[256] == pytest.approx(ends[32], rel=0.15, abs=1e-6)
        assert max(noise.values()) - min(noise.values()) < 1


def test_samples_that_are_left_count_by_their_share():
    x = torch.randn(40, 3, 5, 7, generator=torch.Generator().manual_seed(4))
    watch, head, rest = TopKMedianObserver(), TopKMedianObserver(), TopKMedianObserver()
    for image in x.split(1):
        watch(image)
    head(x[:32])
    rest(x[32:])
    expected = (32 * float(head.max_val) + 8 * float(rest.max_val)) / 40
    assert float(watch.max_val) == pytest.approx(expected, rel=1e-6)
    watch.reset_min_max_vals()
    watch(x[:32])
    assert watch.max_val == head.max_val


@pytest.mark.parametrize("observer", ACTIVATION)
@pytest.mark.parametrize("size", [4, 32])
def test_calls_on_signals_of_different_size_are_all_covered(observer, size):
    x = torch.randn(128, 8, 16, 16, generator=torch.Generator().manual_seed(5))
    both, large = observer(), observer()
    for batch in x.split(size):
        both(batch)
        both(0.02 * batch)
        large(batch)
    assert decibels(x, both) > decibels(x, large) - 2
    assert float(both.max_val) <= 1.25 * float(large.max_val)


def test_one_large_call_of_many_is_covered():
    generator = torch.Generator().manual_seed(6)
    watch = TopKMedianObserver()
    for _ in range(4):
        for size in (0.1, 1.0, 0.2, 0.05, 0.02):
            watch(size * torch.randn(32, 50, generator=generator))
    assert float(watch.max_val) > 2.4


@pytest.mark.parametrize("observer", ACTIVATION[1:])
def test_a_saved_range_goes_on(observer):
    first, second, third = batches()
    whole, before = observer(), observer()
    for batch in (first, second, third):
        whole(batch)
    before(first)
    before(second)
    after = observer()
    after.load_state_dict(before.state_dict())
    assert set(before.state_dict()) == {"min_val", "max_val", "num_batches"}
    after(third)
    assert float(after.max_val) == pytest.approx(float(whole.max_val), rel=1e-6)
    assert copy.deepcopy(whole).max_val == whole.max_val


def test_min_max_is_over_all_batches():
    watch = MinMaxObserver()
    for batch in batches():
        watch(batch)
    everything = torch.cat([b.flatten() for b in batches()])
    assert watch.min_val == everything.min()
    assert watch.max_val == everything.max()


def test_percentile_clips_the_outlier():
    x = torch.linspace(-1, 1, 1001)
    x[-1] = 1000.0
    watch = PercentileObserver(percent=99.5)
    watch(x)
    assert 0.9 < float(watch.max_val) < 1.0
    assert -1.0 < float(watch.min_val) < -0.9


@pytest.mark.parametrize("observer", ACTIVATION)
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("dtype", [torch.quint8, torch.uint8, torch.qint8, torch.int8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_grid_covers_its_range_and_zero_is_exact(observer, bits, dtype, symmetric):
    watch = observer(bits=bits, dtype=dtype, symmetric=symmetric)
    watch(torch.linspace(-2, 5, 5000))
    scale, zero_point = watch.calculate_qparams()
    assert watch.bits == bits
    assert watch.quant_min <= int(zero_point) <= watch.quant_max
    top = (watch.quant_max - int(zero_point)) * float(scale)
    bottom = (watch.quant_min - int(zero_point)) * float(scale)
    assert top >= float(watch.max_val) - float(scale)
    assert bottom <= float(watch.min_val) + float(scale)
    if symmetric:
        assert int(zero_point) == (0 if dtype in (torch.qint8, torch.int8) else 2 ** (bits - 1))


def test_positive_activations_spend_no_code_on_negative_values():
    watch = TopKMedianObserver(bits=4)
    watch(torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1)
    _, zero_point = watch.calculate_qparams()
    assert int(zero_point) == 0


@pytest.mark.parametrize("observer", ACTIVATION)
def test_half_precision_and_empty_batches(observer):
    wide, half = observer(), observer()
    x = batches()[0].half()
    wide(x.float())
    half(x)
    half(torch.empty(0, 3))
    assert half.min_val.dtype == torch.float32
    assert torch.equal(wide.min_val, half.min_val)
    assert int(half.num_batches) == 1


@pytest.mark.parametrize("observer", ACTIVATION)
def test_no_data_is_an_error(observer):
    with pytest.raises(ValueError, match="has seen no data.*Run calibration batches"):
        observer().calculate_qparams()


def test_nan_activations_are_an_error():
    watch = MinMaxObserver()
    watch(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="NaN or infinite activations"):
        watch.calculate_qparams()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"bits": 9}, "bits must be from 2 to 8; got 9"),
        ({"quant_min": 0}, "give both quant_min and quant_max"),
        ({"quant_min": 0, "quant_max": 300}, "must lie within 0 and 255"),
        ({"quant_min": 0, "quant_max": 255, "bits": 4}, "does not fit bits=4"),
        ({"dtype": torch.float32}, "dtype must be torch.quint8"),
        ({"is_dynamic": True}, "holds static ranges"),
        ({"qscheme": torch.per_channel_affine}, "has one grid per tensor"),
    ],
)
def test_nonsense_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        MinMaxObserver(**arguments)


def test_more_nonsense_is_refused():
    with pytest.raises(ValueError, match=r"percent must be in \(50, 100\]; got 30"):
        PercentileObserver(percent=30)
    with pytest.raises(ValueError, match="k must be an int >= 1; got 0"):
        TopKMedianObserver(k=0)
    with pytest.raises(ValueError, match="samples must be an int >= 1; got 0"):
        TopKMedianObserver(samples=0)
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]; got 0"):
        TopKMedianObserver(share=0)
    with pytest.raises(TypeError, match="bits must be an int from 2 to 8; got '8'"):
        MinMaxObserver(bits="8")


def test_factories():
    factory = TopKMedianObserver.with_args(k=5).with_args(bits=4)
    assert factory == TopKMedianObserver.with_args(bits=4, k=5)
    assert factory != TopKMedianObserver.with_args(bits=6, k=5)
    assert factory != MinMaxObserver.with_args(bits=4, k=5)
    assert hash(factory) == hash(TopKMedianObserver.with_args(k=5, bits=4))
    assert factory() is not factory()
    assert factory(k=3).k == 3
    assert copy.deepcopy(factory) == factory
    late = factory.with_callable_args(factory_kwargs=lambda: {"device": "meta"})
    assert late().min_val.device.type == "meta"
    assert late(factory_kwargs=None).min_val.device.type == "cpu"
    assert late.with_args(bits=8)().min_val.device.type == "meta"
    assert "PerChannel" in PWLQPerChannelObserver.with_args().__name__
    assert "bits=4" in repr(factory)


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize(
    "spec",
    [
        PWLQSpec(bits=3),
        PWLQSpec(bits=4, symmetry="symmetric"),
        PWLQSpec(bits=5, breakpoints=2),
        PWLQSpec(bits=6, policy="laplacian", symmetry="symmetric"),
        UniformSpec(bits=8),
        UniformSpec(bits=4, symmetry="asymmetric", clip="mse"),
    ],
    ids=lambda s: s.label if hasattr(s, "label") else None,
)
def test_host_quantizer_reproduces_snapped_weights(spec, axis):
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(6, 4, 3, 3, generator=generator)
    w[2] = 0  # a dead channel
    w[:, 1] *= 1e-3
    watch = PWLQPerChannelObserver(spec, ch_axis=axis)
    assert watch(w) is w
    snapped = quantize(w, spec, axis).dequantize()
    scale, zero_point = watch.calculate_qparams()
    assert not zero_point.any()
    if axis is None:
        stock = torch.quantize_per_tensor(snapped, scale, zero_point, torch.qint8)
    else:
        stock = torch.quantize_per_channel(snapped, scale, zero_point, axis, torch.qint8)
    assert torch.equal(stock.dequantize(), snapped)
    form = weight_format(scale)
    assert form is not None
    again = quantize(w, form.spec, form.ch_axis, edges=form.edges)
    assert torch.equal(again.dequantize(), snapped)


def test_weight_observer_loads_into_a_fresh_one():
    w = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    watch = PWLQPerChannelObserver(PWLQSpec(bits=4))
    watch(w)
    fresh = PWLQPerChannelObserver(PWLQSpec(bits=4))
    fresh.load_state_dict(watch.state_dict())
    assert torch.equal(fresh.calculate_qparams()[0], watch.calculate_qparams()[0])


def test_weight_observer_says_what_is_wrong():
    with pytest.raises(ValueError, match="has seen no weight yet"):
        PWLQPerChannelObserver().calculate_qparams()
    with pytest.raises(TypeError, match="spec must be a format such as a PWLQSpec; got int"):
        PWLQPerChannelObserver(4)
    with pytest.raises(ValueError, match=r"torch.qint8 \(torch.ao\) or torch.int8"):
        PWLQPerChannelObserver(dtype=torch.quint8)
    with pytest.raises(ValueError, match=r"need the integers -127..127; got -8..7"):
        PWLQPerChannelObserver(quant_min=-8, quant_max=7)
    with pytest.raises(ValueError, match="goes with qscheme"):
        PWLQPerChannelObserver(qscheme=torch.per_tensor_symmetric)
    floating = PWLQPerChannelObserver(PWLQSpec(bits=4, grid="float"))
    floating(torch.randn(3, 4))
    with pytest.raises(ValueError, match="no multiples of int8.*grid='int8'"):
        floating.calculate_qparams()
    wide = PWLQPerChannelObserver(UniformSpec(bits=8, symmetry="one-sided"))
    wide(torch.rand(3, 40))
    with pytest.raises(ValueError, match="integer levels up to 255"):
        wide.calculate_qparams()


def with_reach(w, spec):
    """Edges as users solve for them, and the column that keeps levels from overflowing."""
    return complete_edges(w, solve_edges(w, spec), spec, 0)


def test_a_weight_is_solved_once_whatever_copy_is_asked_about(monkeypatch):
    calls = []

    def counting(w, spec, axis):
        calls.append(spec)
        return solve_edges(w, spec, axis=axis)

    monkeypatch.setattr(weight_observer, "solve_edges", counting)
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(99))
    spec = PWLQSpec(bits=4)
    first = weight_observer.solve_once(w, spec, 0)
    first.zero_()  # nobody can spoil what is remembered
    again = weight_observer.solve_once(w.t().contiguous().t().clone(), spec, 0)
    assert torch.equal(again, with_reach(w, spec))
    assert len(calls) == 1
    assert torch.equal(weight_observer.solve_once(w.half(), spec, 0), with_reach(w.half(), spec))
    w.data[0, 0] += 1
    assert torch.equal(weight_observer.solve_once(w, spec, 0), with_reach(w, spec))
    weight_observer.solve_once(w, spec, 1)
    weight_observer.solve_once(w, PWLQSpec(bits=5), 0)
    assert len(calls) == 5


@pytest.mark.parametrize("shape", [(6, 3, 1, 1), (6, 1, 3, 3), (1, 1, 1, 1), (6, 3, 2, 2)])
def test_weights_in_any_memory_layout_have_the_same_edges(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    last = w.to(memory_format=torch.channels_last)
    spec = PWLQSpec(bits=4)
    assert torch.equal(weight_observer.solve_once(last, spec, 0), with_reach(w, spec))
    slices = torch.stack([w, w], -1)[..., 0]
    assert torch.equal(weight_observer.solve_once(slices, spec, 0), with_reach(w, spec))


@pytest.mark.parametrize("kind", ACTIVATION)
def test_options_name_every_argument_beside_the_grids(kind):
    """Who makes an observer like another one, of another width, asks for these."""
    own = [n for n in inspect.signature(kind.__init__).parameters if n not in ("self", "kwargs")]
    told = {"percent": 99.0, "k": 3, "share": 0.5, "samples": 2}
    wanted = {name: told[name] for name in own if kind is not MinMaxObserver}
    assert kind(**wanted).options() == wanted


@pytest.mark.parametrize("sizes", [(5, 8, 30, 3), (32, 64, 32, 40), (1, 1, 70, 2)])
def test_numbers_of_numpy_and_of_torch_are_the_same(sizes, monkeypatch):
    """On the CPU numpy counts; a compiler, a GPU or other types have torch do so."""
    generator = torch.Generator().manual_seed(7)
    ours, theirs = TopKMedianObserver(), TopKMedianObserver()
    taken = []
    original = TopKMedianObserver.pool

    def pool(self, *numbers):
        taken.append(isinstance(numbers[0], torch.Tensor))
        original(self, *numbers)

    monkeypatch.setattr(TopKMedianObserver, "pool", pool)
    for place, size in enumerate(4 * sizes):
        x = torch.randn(size, 4, 9, 9, generator=generator) * (0.02 if place % 5 == 4 else 1.0)
        if place == 14:
            x[0, 0, 0, 0] = torch.inf
        ours(x)
        monkeypatch.setattr("zaq_plugin.observers.is_eager", lambda *_: False)
        theirs(x)
        monkeypatch.undo()
        monkeypatch.setattr(TopKMedianObserver, "pool", pool)
        for (name, mine), yours in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            assert torch.equal(mine, yours), name
    assert taken == [False, True] * len(taken[::2])
