"""Another package adds a host by an entry point; nothing of this project has to know it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_networks import Plain, inputs, network

from zaq_plugin.ptq import calibrate, correct_bias
from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.student import student_of
from zaq_plugin.student.host import Assignment, find_host, host_names

TOY = """
from zaq_plugin.ptq import audit, fold_batch_norm, simulate
from zaq_plugin.student.host import Prepared


class Toy:
    name, kernels = "toy", "float"

    def prepare(self, model, example_inputs, assignment, *, train=False):
        folded = fold_batch_norm(model, example_inputs)
        student = simulate(folded, assignment.weights, assignment.activations)
        return Prepared(student, ["a toy"], fixed_batch=4)

    def convert(self, model):
        return model

    def audit(self, model):
        return audit(model)

    def why_not(self, assignment):
        return "toys have one grid a channel" if assignment.per_tensor else None


class Broken:
    name, kernels = "broken", "float"

    def prepare(self, model, example_inputs, assignment, *, train=False):
        raise NotImplementedError

    def audit(self, model):
        raise NotImplementedError


HOST, BROKEN = Toy(), Broken()
"""

POINTS = """
[zaq.hosts]
toy = toy_host_of_a_test:HOST
broken = toy_host_of_a_test:BROKEN
absent = toy_host_of_a_test_that_is_absent:HOST

[another.group]
stranger = toy_host_of_a_test:HOST
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with hosts, installed for one test."""
    (tmp_path / "toy_host_of_a_test.py").write_text(TOY, encoding="utf-8")
    folder = tmp_path / "toy_host_of_a_test-1.0.dist-info"
    folder.mkdir()
    metadata = "Metadata-Version: 2.1\nName: toy-host-of-a-test\nVersion: 1.0\n"
    (folder / "METADATA").write_text(metadata, encoding="utf-8")
    (folder / "entry_points.txt").write_text(POINTS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_host_of_a_test", raising=False)


OURS = ["executorch", "fx", "litert", "nncf", "pt2e", "simulated"]


def test_hosts_of_the_project() -> None:
    assert host_names() == OURS
    text = f"host must be one of {', '.join(OURS)}; got 'toy'"
    with pytest.raises(ValueError, match=text):
        find_host("toy")


@pytest.mark.usefixtures("installed")
def test_a_host_of_another_package() -> None:
    assert host_names() == sorted([*OURS, "toy", "broken", "absent"])
    assert "toy_host_of_a_test" not in sys.modules, "names are read without an import"
    host = find_host("toy")
    assert (host.name, host.kernels) == ("toy", "float")
    x = inputs(Plain)
    spec = PWLQSpec(bits=4)
    prepared = host.prepare(network(Plain), (x[:2],), Assignment(spec))
    assert (prepared.notes, prepared.fixed_batch) == (["a toy"], 4)
    calibrate(prepared.model, [x])
    assert set(correct_bias(prepared.model, [x])) == set(student_of(prepared.model).layers())
    converted = host.convert(prepared.model)
    assert len(host.audit(converted).quantized) == 3
    assert host.why_not(Assignment(spec)) is None
    assert host.why_not(Assignment(spec, per_tensor=True)) == "toys have one grid a channel"


@pytest.mark.usefixtures("installed")
def test_what_is_no_host_is_refused() -> None:
    text = (
        "the entry point 'broken' of group 'zaq.hosts' names toy_host_of_a_test:BROKEN, which is "
        "no host: it lacks convert, why_not$"
    )
    with pytest.raises(ValueError, match=text):
        find_host("broken")
    with pytest.raises(ImportError, match="toy_host_of_a_test_that_is_absent"):
        find_host("absent")
    with pytest.raises(ValueError, match="must be one of absent, broken, executorch, .*'stranger'"):
        find_host("stranger")
