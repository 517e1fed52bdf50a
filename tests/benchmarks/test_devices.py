"""The page of files for devices: shares, marks, and gaps."""

from typing import Any

from benchmarks.devices.tables import tables


def row(kind: str, **changes: Any) -> dict[str, Any]:
    entry = {
        "tool": "executorch",
        "task": "cifar10",
        "versions": "executorch 1.5.1",
        "kind": kind,
        "bytes": 300_000,
        "zipped": 250_000,
        "metric": "top-1",
        "score": 89.0,
        "agreement": 98.0,
        "float_score": 90.0,
        "images": 1000,
        "verified": None,
    }
    return {**entry, **changes}


def test_shares_of_the_tools_own_int8() -> None:
    rows = [
        row("float"),
        row("stock 8/8"),
        row("ours 5/8", zipped=200_000, verified=True),
        row("ours 4/8", zipped=175_000, verified=False),
        {**row("latency"), "ms": {"stock 8/8": 2.0, "ours 5/8": 2.02, "ours 4/8": 2.1}},
    ]
    text = tables(rows)
    assert "| ours 5/8 | 300 | 200 | 0.80 | 89.0 | 98.0 | 2.02 | 1.01 | yes |" in text
    assert "| ours 4/8 | 300 | 175 | 0.70 | 89.0 | 98.0 | 2.10 | 1.05 (!) | **no** |" in text
    assert "| float | 300 | 250 | 1.00 | 89.0 | 98.0 | – | – | – |" in text


def test_a_run_that_is_not_finished() -> None:
    text = tables([row("float"), row("stock 8/8")])
    assert text.count("| – | – | – |") == 2


def test_what_a_tool_refuses_is_told_with_its_reason() -> None:
    common = {key: row("float")[key] for key in ("tool", "task", "versions")}
    refused = {**common, "kind": "stock 8/8", "refused": "ValueError: no kernel"}
    text = tables([refused, row("float"), row("ours 5/8", verified=True)])
    assert "| ours 5/8 | 300 | 250 | – | 89.0 | 98.0 | – | – | yes |" in text
    assert text.rstrip().endswith("stock 8/8: the tool refuses, ValueError: no kernel")
