"""The integer executor against ONNX Runtime, layer by layer, and against exact fractions."""

from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integer_inference import IntegerModel
from onnx import helper
from requantization import Sum, multiplier, requantize

from zaq_onnx.files import load, unpack_model
from zaq_onnx.runtimes import feeds_of, kernels, optimized, ort_session


def test_it_agrees_with_onnx_runtime_to_one_step(case: Any) -> None:
    """Each layer is given ONNX Runtime's own integers, so that differences do not add up."""
    if case.name == "pt2e-a4":
        pytest.skip("every tensor of 4 bits is limited behind its name")
    model = unpack_model(load(case.packed))
    quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    for node in quantizers:
        info = helper.make_tensor_value_info(node.output[0], kinds[node.input[2]], None)
        model.graph.output.append(info)
    session = ort_session(model)
    if case.name != "nncf":  # signed integers, which the runtime shifts, unless they are looked at
        assert kernels(optimized(model))["QLinearConv"] == 4, "integers of integer kernels"
    outputs = session.run(None, feeds_of(session, (case.images,)))
    names = [node.output[0] for node in quantizers]
    theirs = dict(zip(names, outputs[1:], strict=True))
    ours = IntegerModel(case.packed)
    (result,) = ours.run((case.images,), theirs)
    for name in names:
        difference = np.abs(ours.codes[name].astype(int) - theirs[name].astype(int))
        assert difference.max() <= 1, name
        assert (difference > 0).mean() < 0.01, name
    np.testing.assert_allclose(result, outputs[0], atol=1e-4)


def test_nothing_but_integers_flows_between_layers(pt2e_case: Any) -> None:
    model = IntegerModel(pt2e_case.packed)
    model.run((pt2e_case.images,))
    assert len(model.codes) >= 6
    assert {codes.dtype for codes in model.codes.values()} == {np.dtype(np.uint8)}


@given(st.floats(1e-6, 1e4))
def test_a_multiplier_has_31_bits(scale: float) -> None:
    value, shift = multiplier(scale)
    assert 2**30 <= value <= 2**31
    assert abs(Fraction(value, 2**shift) if shift >= 0 else value * 2**-shift) == pytest.approx(
        scale, rel=2**-30
    )


@given(
    st.integers(-(2**24), 2**24),
    st.integers(-(2**20), 2**20),
    st.floats(1e-5, 0.01),
    st.floats(1e-5, 0.01),
    st.integers(0, 255),
)
def test_requantisation_is_exact_but_for_ties(
    a: int, b: int, first: float, second: float, zero: int
) -> None:
    total = Sum(
        (
            (np.array([[a]], np.int32), np.array(first)),
            (np.array([[b]], np.int32), np.array(second)),
        )
    )
    exact = (a * Fraction(first) + b * Fraction(second)) / Fraction(0.05) + zero
    output = int(requantize(total, 0.05, zero, np.dtype(np.uint8))[0, 0])
    limited = min(max(exact, Fraction(0)), Fraction(255))
    assert abs(output - limited) <= Fraction(1, 2) + Fraction(1, 1000)


def test_requantisation_knows_channels_zero_and_type() -> None:
    values = np.array([[10, 10, -1000]], np.int32)
    total = Sum(((values, np.array([0.1, 0.2, 0.1])),))
    codes = requantize(total, 0.1, 3, np.dtype(np.uint8))
    assert codes.tolist() == [[13, 23, 0]]
    floored = Sum(total.terms, floor=True)
    assert requantize(floored, 0.1, 3, np.dtype(np.uint8)).tolist() == [[13, 23, 3]]
    with pytest.raises(TypeError, match="accumulators must be int32; got int64"):
        requantize(Sum(((values.astype(np.int64), np.array(0.1)),)), 0.1, 0, np.dtype(np.uint8))
    with pytest.raises(ValueError, match="must be positive and finite; got 0"):
        multiplier(0.0)


def test_operators_beyond_integers_are_refused(pt2e_case: Any, tmp_path: Any) -> None:
    model = onnx.load(pt2e_case.plain)
    del model.metadata_props[:]
    last = model.graph.node[-1]
    name = last.output[0]
    last.output[0] = "inner"
    model.graph.node.append(helper.make_node("Softmax", ["inner"], [name]))
    onnx.save(model, tmp_path / "soft.onnx")
    with pytest.raises(ValueError, match="Softmax .* cannot be computed in integers alone"):
        IntegerModel(tmp_path / "soft.onnx").run((pt2e_case.images,))
