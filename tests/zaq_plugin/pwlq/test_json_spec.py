"""Specs refuse nonsense at once and survive JSON."""

import dataclasses
import json

import pytest

from zaq_plugin.pwlq import PWLQSpec, UniformSpec, spec_from_json


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"bits": 1}, ValueError, "bits must be from 2 to 8; got 1"),
        ({"bits": 9, "grid": "float"}, ValueError, "bits must be from 2 to 8; got 9"),
        ({"bits": 4.0}, TypeError, "bits must be an int from 2 to 8; got 4.0"),
        ({"bits": True}, TypeError, "bits must be an int from 2 to 8; got True"),
        ({"breakpoints": 0}, ValueError, "breakpoints must be from 1 to 3; got 0"),
        ({"policy": "best"}, ValueError, "policy must be one of 'gaussian'.*got 'best'"),
        ({"symmetry": "odd"}, ValueError, "symmetry must be one of.*got 'odd'"),
        ({"grid": "int4"}, ValueError, "grid must be one of 'int8', 'float'; got 'int4'"),
        ({"bits": 7}, ValueError, "grid='int8' holds at most 6 bits, got bits=7.*grid='float'"),
        ({"overlapping": True, "breakpoints": 2}, ValueError, "defined for one breakpoint"),
        ({"shared_endpoints": 1}, TypeError, "shared_endpoints must be True or False; got 1"),
    ],
)
def test_pwlq_spec_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        PWLQSpec(**arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"bits": 9}, "bits must be from 2 to 8; got 9"),
        ({"clip": "best"}, "clip must be one of 'minmax', 'mse'; got 'best'"),
        ({"symmetry": "odd"}, "symmetry must be one of"),
    ],
)
def test_uniform_spec_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        UniformSpec(**arguments)


@pytest.mark.parametrize(
    "spec",
    [
        PWLQSpec(),
        PWLQSpec(bits=8, grid="float", breakpoints=3, symmetry="one-sided", policy="laplacian"),
        UniformSpec(5, "asymmetric", "mse"),
    ],
)
def test_json_round_trip(spec):
    assert type(spec).from_json(spec.to_json()) == spec
    assert spec_from_json(spec.to_json()) == spec


def test_json_errors_name_the_key():
    values = json.loads(PWLQSpec().to_json()) | {"bitz": 4}
    with pytest.raises(ValueError, match="unknown key 'bitz'; known keys are bits, breakpoints"):
        PWLQSpec.from_json(json.dumps(values))
    with pytest.raises(ValueError, match="describes kind 'uniform', not 'pwlq'"):
        PWLQSpec.from_json(UniformSpec().to_json())
    known = "kind must be 'pwlq' or 'uniform' or 'power-of-two' or 'codebook'; got None"
    with pytest.raises(ValueError, match=known):
        spec_from_json("{}")
    with pytest.raises(ValueError, match="not valid JSON"):
        spec_from_json("{")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        PWLQSpec.from_json("[]")


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PWLQSpec().bits = 5


@pytest.mark.parametrize("bits", range(2, 9))
def test_one_breakpoint_stores_one_bit_more(bits):
    spec = PWLQSpec(bits=bits, grid="float")
    assert (spec.mac_bits, spec.stored_bits) == (bits, bits + 1)
    assert UniformSpec(bits).stored_bits == UniformSpec(bits).mac_bits == bits
    assert f"{bits}b MAC/{bits + 1}b stored" in spec.label
