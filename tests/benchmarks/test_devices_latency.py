"""The page of devices' latencies."""

from benchmarks.devices.latency import KINDS, markdown


def row(tool: str, ours: float) -> dict[str, object]:
    """What a run gives, made up."""
    ms = dict(zip(KINDS, (4.0, 2.0, 2.0, ours), strict=True))
    sizes = dict.fromkeys(KINDS, 3_000_000)
    return {
        "tool": tool,
        "network": "net",
        "versions": f"{tool} 1.0",
        "processor": "VNNI",
        "ms": ms,
        "bytes": sizes,
        "zipped": sizes,
    }


def test_a_table_for_each_tool_marks_what_is_slower_than_the_aim() -> None:
    page = markdown([row("executorch", 2.04), row("litert", 2.2)])
    lines = [line for line in page.splitlines() if line.startswith("| net |")]
    assert len(lines) == 2
    assert "## executorch 1.0" in page
    assert "## litert 1.0" in page
    assert "| 1.02 |" in lines[0]
    assert "| 1.10 (!) |" in lines[1]
