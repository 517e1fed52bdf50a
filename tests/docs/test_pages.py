"""The guide says nothing that is not so: its code runs, its commands are understood, its links lead
somewhere, its errors are ours."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from zaq_plugin.report import Manifest, ResultRow
from zaq_timm.cli import build_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
SLOW = {"how_to/nncf.md", "how_to/pt2e.md", "how_to/onnx.md", "how_to/own_loop.md", "how_to/fx.md"}
"""Pages whose code takes more than ten seconds on a busy core."""
ELSEWHERE = {"executorch.md", "litert.md"}
"""Pages whose code needs a tool of its own: the tool's tests run it, see their test_page.py."""
START = "start.md"
INSTALLS = ("python3 -m venv", "pip install")


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """Title (a file's name) and code of every block in a language."""
    matches = re.findall(
        rf'^```{language}(?: title="([^"]+)")?\n(.*?)^```$', text_of(page), re.MULTILINE | re.DOTALL
    )
    assert text_of(page).count(f"\n```{language}") == len(matches), "a block with unknown options"
    return matches


def load_by_path(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return load_by_path("docs_hooks", DOCS / "hooks.py")


def coded() -> Iterator[object]:
    for page in PAGES:
        if page not in {START, *ELSEWHERE} and blocks(page, "python"):
            marks = [pytest.mark.slow] if page in SLOW else []
            yield pytest.param(page, marks=marks)


@pytest.mark.parametrize("page", list(coded()))
def test_code_runs_from_top_to_bottom(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for title, code in blocks(page, "python"):
        if title:
            (tmp_path / title).write_text(code, encoding="utf-8")
        else:
            exec(compile(code, page, "exec"), names)


def test_every_page_with_code_is_tried() -> None:
    assert len(list(coded())) >= 9
    assert set(PAGES) >= SLOW


READ = (".onnx", ".npz", ".pte", ".tflite", ".zaq")
NAMED = ("run", "compare", "inspect", "verify", "pack", "unpack")


def command_lines(page: str) -> list[str]:
    """What a reader may type: in blocks, behind ``$`` in consoles, and in running text."""
    text = text_of(page)
    lines = re.findall(r"^\$ (zaq-quantize .*)$", text, re.MULTILINE)
    lines += [line for _, code in blocks(page, "sh") for line in code.splitlines()]
    lines += re.findall(r"`(zaq-quantize [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for line in lines if line.startswith("zaq-quantize ")]


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)])
def test_commands_are_understood(
    page: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the reader has the files that they read."""
    monkeypatch.chdir(tmp_path)
    for line in command_lines(page):
        words = shlex.split(line)[1:]
        for word in words:
            if Path(word).suffix in READ and not Path(word).parent.name:
                Path(word).touch()
        if "--help" in words:
            with pytest.raises(SystemExit) as caught:
                build_parser().parse_args(words)
            assert caught.value.code == 0
        elif len(words) > 1 or words[0] not in NAMED:  # named, not called
            build_parser().parse_args(words)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str, hooks: ModuleType) -> None:
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        if name in hooks.ROOT_PAGES:
            assert (ROOT / name).is_file()
            continue
        if f"{Path(page).parent.as_posix()}/{name}".removeprefix("./") == hooks.ERRORS:
            continue  # made when the site is built
        path = (DOCS / page).parent / name if name else DOCS / page
        assert path.resolve().is_file(), f"{page} links to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\s-]", "", h).strip().lower().replace(" ", "-") for h in heads}
            assert anchor in slugs, f"{page} links to {target}"


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in PAGES if page not in config] == []


def test_errors_that_troubleshooting_quotes_are_ours(hooks: ModuleType) -> None:
    ours = [text for texts in hooks.error_texts().values() for text in texts]
    quoted = re.findall(r"^> (.+)$", text_of("how_to/troubleshooting.md"), re.MULTILINE)
    assert len(quoted) >= 15
    for quote in quoted:
        assert any(bare(quote) in bare(text) for text in ours), quote


def bare(text: str) -> str:
    """Words alone: what varies, and how it is quoted, left out."""
    return " ".join(re.sub(r"['`()]|…", " ", text).split())


def test_the_page_of_errors_has_every_package(hooks: ModuleType) -> None:
    page = hooks.errors_page()
    for package in ("zaq_plugin.pwlq", "zaq_fx", "zaq_pt2e", "zaq_nncf", "zaq_onnx", "zaq_timm"):
        assert f"\n## {package}\n" in page
    assert "no timm model matches …; timm.list_models() tells them all." in page
    code = "def f(x):\n    raise ValueError(f'got {x!r}, ' 'expected two words' + x)\n"
    assert list(hooks.texts_raised(code)) == ["got …, expected two words…"]
    code = "def f(x):\n    text = 'one text' if x else 'or another'\n    return ValueError(text)\n"
    assert list(hooks.texts_raised(code)) == ["one text", "or another"]


def test_every_error_of_ours_is_on_the_page_of_errors(hooks: ModuleType) -> None:
    """But for those that hand on what another error, a host or a report says."""
    pattern = re.compile(r"\b(error|reason|reasons)\b|str\(self\)|checked\.problems")
    for top in hooks.SOURCES:
        for path in sorted((ROOT / top).rglob("*.py")):
            for call in hooks.raises_without_text(path.read_text(encoding="utf-8")):
                assert pattern.search(call), f"{path.relative_to(ROOT)}: {call}"


def test_errors_are_found_by_words_in_a_checkout(
    hooks: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks.main(["BATCHNORM", "needs", "batch_size"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("zaq_plugin.zero_shot: batch_size must be at least 2: BatchNorm needs")


def test_figures_of_the_concepts_are_those_that_the_script_draws() -> None:
    drawn = load_by_path("make_figures", DOCS / "make_figures.py").figures()
    used = set(re.findall(r"\]\(figures/([^)]+)\)", text_of("concepts.md")))
    assert used == set(drawn)
    for name, svg in drawn.items():
        stored = (DOCS / "figures" / name).read_text(encoding="utf-8")
        assert words_of(stored) == words_of(svg), f"python docs/make_figures.py ({name})"


def words_of(svg: str) -> list[str]:
    """The texts in a picture."""
    return re.findall(r">([^<>]+)</text>", svg)


@pytest.mark.slow
def test_mkdocs_builds_the_site_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "s")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s" / "reference" / "core" / "index.html").is_file()


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
def test_the_start_page_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every block but the installation, in order, in an empty folder; then the demo's table."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    pattern = r'^```(python|sh)(?: title="([^"]+)")?\n(.*?)^```$'
    shell = shutil.which("bash") or "sh"
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    for language, title, code in re.findall(pattern, text_of(START), re.MULTILINE | re.DOTALL):
        if title:
            (tmp_path / title).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, START, "exec"), names)
        elif not code.startswith(INSTALLS):
            command = [shell, "-e", "-c", code]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert "Conv2d" in capsys.readouterr().out
    assert float(names["top1"]) > 0.98  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("mine/models/my_model-tiny-*/model.onnx"))) == 1
    assert (tmp_path / "mine" / "report.html").is_file()
    compare_table(Manifest.load(tmp_path / "zaq-demo" / "manifest.json"))


def compare_table(manifest: Manifest) -> None:
    """Sizes to the last digit; accuracies to 1.5 points, as machines round differently."""
    measured = {tuple(c[:3]): c for c in map(cells, manifest.results)}
    text = text_of(START)
    table = text.split("<!-- table: zaq-quantize demo -->")[1].split("<!-- end of table -->")[0]
    printed = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if line
    ][2:]
    assert len(printed) >= 10
    for row in printed:
        figures = measured[tuple(row[:3])]
        assert row[3:4] == figures[3:4]
        if row[4] != "–":
            assert float(row[4]) == pytest.approx(float(figures[4]), abs=0.11)
        for one, other in zip(row[5:], figures[5:], strict=True):
            assert float(one) == pytest.approx(float(other), abs=1.5)
