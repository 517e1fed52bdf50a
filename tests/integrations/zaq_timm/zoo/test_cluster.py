"""A local Ray cluster of two nodes does what one machine does, into the same results file."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zoo_fake_work import FakePlan

from zaq_timm.zoo.errors import RunError
from zaq_timm.zoo.runner import run
from zaq_timm.zoo.worker import Limits

PLAN = FakePlan(tuple("abcdef"))
HERE = str(Path(__file__).parent)


def test_ray_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"--cluster ray needs Ray.*pip install 'zaq_plugin\[ray\]'"):
        run(PLAN, tmp_path, cluster="ray", quiet=True)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two nodes of one processor each, and this process no part of either."""
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    paths = [HERE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    try:
        nodes.add_node(**node)
        nodes.wait_for_nodes()
        yield str(nodes.address)
    finally:
        nodes.shutdown()


def facts(out: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows)
    by_key = {}
    for row in rows:
        row.pop("measured")
        by_key[row["key"]] = row
        by_key[f"{row['key']} file"] = (out / "models" / row["key"] / "steps.txt").read_text()
    return by_key


@pytest.mark.slow
def test_two_nodes_do_what_one_machine_does(tmp_path: Path, address: str) -> None:
    import ray

    run(PLAN, tmp_path / "here", limits=Limits(), quiet=True)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        alive = [n for n in ray.nodes() if n["Alive"]]
        assert len(alive) == 2
        some = FakePlan(PLAN.models[:2])
        run(some, tmp_path / "ray", limits=Limits(), cluster="ray", quiet=True)
        done: list[str] = []
        results = run(
            PLAN,
            tmp_path / "ray",
            limits=Limits(),
            cluster="ray",
            quiet=True,
            on_row=lambda row: done.append(row["key"]),
        )
    finally:
        ray.shutdown()
    assert sorted(done) == list("cdef")  # resumed
    assert set(results.rows) == set(PLAN.models)
    assert facts(tmp_path / "ray") == facts(tmp_path / "here")
    assert not list((tmp_path / "ray" / "models").glob(".tmp-*"))


@pytest.mark.slow
def test_a_model_that_crashes_there_costs_one_row(tmp_path: Path, address: str) -> None:
    results = run(
        FakePlan(("a", "b"), "crash"),
        tmp_path,
        limits=Limits(),
        cluster=f"ray:{address}",
        quiet=True,
    )
    assert {row["reason"] for row in results.rows.values()} == {"crashed with SIGSEGV; see log.txt"}
    assert (tmp_path / "models" / "a" / "log.txt").is_file()


def test_an_address_where_nobody_is(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RunError, match=f"no Ray cluster at '127.0.0.1:{port}'"):
        run(PLAN, tmp_path, cluster=f"ray:127.0.0.1:{port}", quiet=True)
