"""Strict JSON, and files that are whole or not there."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.report._json import check_keys, dumps, loads_object, plain, to_float


def _refuse(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def test_non_finite_numbers_are_written_as_standard_json_and_read_back():
    text = dumps({"a": math.inf, "b": -math.inf, "c": math.nan, "d": 1.5})
    read = json.loads(text, parse_constant=_refuse)
    back = {k: to_float(v) for k, v in read.items()}
    assert back["a"] == math.inf
    assert back["b"] == -math.inf
    assert math.isnan(back["c"])
    assert back["d"] == 1.5


def test_tensors_arrays_paths_sets_and_specs_become_plain_values():
    spec = PWLQSpec(bits=3)
    value = plain(
        {
            "tensor": torch.tensor([[1.0, 2.0]]),
            "scalar": torch.tensor(3),
            "array": np.arange(2),
            "path": Path("a") / "b",
            "set": {"y", "x"},
            "tuple": (1, None),
            "spec": spec,
            5: True,
        }
    )
    assert value == {
        "tensor": [[1.0, 2.0]],
        "scalar": 3,
        "array": [0, 1],
        "path": os.path.join("a", "b"),
        "set": ["x", "y"],
        "tuple": [1, None],
        "spec": json.loads(spec.to_json()),
        "5": True,
    }
    assert PWLQSpec.from_json(json.dumps(value["spec"])) == spec


def test_a_value_without_json_is_named_by_its_place():
    with pytest.raises(TypeError, match=r"stage\.facts\[1\] is a object, which JSON cannot hold"):
        plain({"facts": [1, object()]}, "stage")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "Thing is not valid JSON .* was the file cut short"),
        ("[1]", "Thing must be a JSON object, got a list"),
    ],
)
def test_text_that_is_no_object_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        loads_object(text, "Thing")


def test_unknown_keys_are_named_beside_the_known_ones():
    with pytest.raises(ValueError, match=r"Row has unknown key\(s\) 'topp1'; known keys are top1"):
        check_keys({"topp1": 1}, ["top1"], "Row")
