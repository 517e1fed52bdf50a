"""The table of shipped files: what it marks, and that it survives gaps."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.deploy.prepare import network
from benchmarks.deploy.run import measure
from benchmarks.deploy.tables import tables
from benchmarks.rows import read_rows


def row(**changes: Any) -> dict[str, Any]:
    times = {
        "fp32": 0.01,
        "stock": 0.005,
        "int8_4": 0.004,
        "int8_5": 0.004,
        "packed4": 0.004,
        "packed5": 0.004,
    }
    entry: dict[str, Any] = {
        "name": "net",
        "threads": 1,
        "bytes": {
            "fp32": 4_000_000,
            "stock": 1_010_000,
            "int8_4": 1_000_000,
            "packed4": 540_000,
            "int8_5": 1_000_000,
            "packed5": 700_000,
        },
        "same_graph": {4: True, 5: True},
        "layers": [20, 1],
        "unpack": {"4": 0.1, "5": 0.2},
    }
    for runtime in ("ort", "openvino"):
        entry[f"{runtime}_latency"] = dict(times)
        entry[f"{runtime}_load"] = dict(times)
        entry[f"{runtime}_same"] = {4: True, 5: True}
    return {**entry, **changes}


def test_what_misses_an_aim_is_marked() -> None:
    text = tables([row()])
    assert "| net | 4,000 | 1,010 | 1,000 | 540 | 0.54 | 700 | 0.70 (!) |" in text
    assert "| net | 20 / 1 | yes | yes | yes |" in text
    assert "| 0.80 |" in text


def test_a_runtime_that_refused_a_file_leaves_a_gap() -> None:
    broken = row()
    del broken["openvino_latency"]["stock"]
    del broken["openvino_load"]["packed5"]
    lines = tables([broken]).split("## OpenVINO")[1].split("\n")
    line = next(x for x in lines if x.startswith("| net |"))
    assert line == "| net | 10.00 | – | 4.00 | 4.00 | – | 10 | 4 | 4 | 1.00 | – | – |"


def test_accuracy_stands_next_to_the_converted_models() -> None:
    real = row(
        images=1000,
        fp32_accuracy=90.0,
        converted_accuracy={4: 88.0, 5: 89.0},
        ort_accuracy={4: 88.1, 5: 89.0},
        openvino_accuracy={4: 87.9},
    )
    text = tables([real])
    assert "| net | 1,000 | 4 | 90.00 | 88.00 | – | 88.10 | 87.90 | – | – | – | – |" in text
    assert "| net | 1,000 | 5 | 90.00 | 89.00 | – | 89.00 | – | – | – | – | – |" in text


def test_the_header_says_how_busy_the_machine_was() -> None:
    text = tables([row(busy=[0.4, 1.2], processors=2), row(name="b", busy=[0.9, 3.0])])
    assert "(2 processors) while these times were taken: 0.4 to 3.0" in text
    assert "How busy the machine was is not known." in tables([row()])


def test_what_was_not_prepared_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not prepared; run `python -m benchmarks.deploy.prep"):
        measure(tmp_path, 1, 1, 1)


def test_results_of_an_earlier_run_are_read(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.jsonl") == []
    (tmp_path / "some.jsonl").write_text('{"name": "a"}\n\n{"name": "b"}\n')
    assert [entry["name"] for entry in read_rows(tmp_path / "some.jsonl")] == ["a", "b"]


def test_networks_of_the_data_folder_bring_their_images(data: Path) -> None:
    net = network("cifar10", data)
    assert net.labels is not None
    assert net.images is not None
    assert len(net.images) == len(net.labels) == 40
    assert sum(map(len, net.batches)) == 64
    with pytest.raises(FileNotFoundError, match="is missing; --data must name the folder"):
        network("cifar10", data / "nowhere")
