"""The README says nothing that is not so: its commands, its code, its table, its picture."""

import re
import shlex
from pathlib import Path

import pytest

from zaq_plugin.report import ResultRow
from zaq_timm.cli import build_parser
from zaq_timm.demo import run_demo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_both_commands_stand_there_each_with_its_fresh_environment() -> None:
    environment = "python3 -m venv .venv && . .venv/bin/activate\n"
    assert blocks("sh") == [
        environment + "pip install -e '.[all]' && zaq-quantize demo\n",
        environment + "pip install -e '.[test]' && pytest\n",
    ]


def test_ci_finds_the_test_command_as_its_only_match() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"grep -E '(.*?)' README.md", script)
    found = [line for line in README.splitlines() if re.search(pattern, line)]
    assert found == ["pip install -e '.[test]' && pytest"]


def test_every_command_line_of_ours_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    lines = set(re.findall(r"`(zaq-quantize [^`]+)`|&& (zaq-quantize .*)", README))
    assert len(lines) >= 2
    for line in {a or b for a, b in lines}:
        if "--help" in line:
            with pytest.raises(SystemExit) as caught:
                build_parser().parse_args(shlex.split(line)[1:])
            assert caught.value.code == 0
        else:
            build_parser().parse_args(shlex.split(line)[1:])


def test_files_it_points_to_are_there() -> None:
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if "://" not in t]
    assert "docs/report.png" in targets
    for target in targets:
        assert (ROOT / target).is_file(), target


def cells(row: ResultRow) -> list[str]:
    noise = "–" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
    return [
        row.method,
        f"{row.weight_mac_bits:g} / {row.weight_stored_bits:g}",
        f"{row.activation_mac_bits:g} / {row.activation_stored_bits:g}",
        f"{(row.size_bytes or 0) / 1000:.1f}",
        noise,
        f"{row.top1:.2f}",
        f"{row.agreement:.2f}",
    ]


@pytest.mark.slow
def test_the_demos_table_and_the_code_are_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes to the last digit; accuracies to 1.5 points, as machines round differently."""
    measured = {
        tuple(c[:3]): c for c in map(cells, run_demo(tmp_path / "zaq-demo").manifest.results)
    }
    table = README.split("<!-- table: zaq-quantize demo -->")[1].split("<!-- end of table -->")[0]
    printed = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if line
    ][2:]
    assert len(printed) >= 10
    for row in printed:
        told = measured[tuple(row[:3])]
        assert row[3:4] == told[3:4]
        if row[4] != "–":
            assert float(row[4]) == pytest.approx(float(told[4]), abs=0.11)
        for one, other in zip(row[5:], told[5:], strict=True):
            assert float(one) == pytest.approx(float(other), abs=1.5)

    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    assert "Conv2d" in capsys.readouterr().out
    assert float(names["top1"]) > 0.98  # type: ignore[arg-type]
