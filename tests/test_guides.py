"""ARCHITECTURE.md and CONTRIBUTING.md say nothing that is not so: paths, tests, code, recipes."""

import re
import sys
from importlib import invalidate_caches
from pathlib import Path
from types import ModuleType

import pytest
import torch

from zaq_plugin.pwlq import names, spec_from_json, spec_from_name
from zaq_plugin.strategies import Request, apply
from zaq_plugin.student import student_of
from zaq_plugin.student.host import find_host, host_names

ROOT = Path(__file__).parents[1]
GUIDES = ("ARCHITECTURE.md", "CONTRIBUTING.md")
TOPS = ("zaq_plugin", "integrations", "tests", "benchmarks", "examples", "docs", ".ci")


def text_of(guide: str) -> str:
    return (ROOT / guide).read_text(encoding="utf-8")


def blocks() -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", text_of("CONTRIBUTING.md"), re.MULTILINE | re.DOTALL
    )


def recipes() -> dict[str, str]:
    """Path to code of every file that a recipe makes."""
    files = {}
    for block in blocks():
        head = re.match(r"# (\S+\.py)\n", block)
        if head:
            files[head[1]] = block
    return files


def paths(text: str) -> set[str]:
    """Everything in a text that looks like a path of this repository."""
    tops = "|".join(map(re.escape, TOPS))
    return set(re.findall(rf"(?<![\w/.])((?:{tops})/[\w./-]*[\w/]|[A-Z]+\.md|setup\.cfg)", text))


def test_the_reader_of_paths_sees_files_and_folders() -> None:
    seen = paths(
        "a `tests/x.py`, `zaq_plugin/ptq/`; python benchmarks/a.py. [b](README.md) x/tests/y"
    )
    assert seen == {"tests/x.py", "zaq_plugin/ptq/", "benchmarks/a.py", "README.md"}


@pytest.mark.parametrize("guide", GUIDES)
def test_every_path_that_a_guide_names_exists(guide: str) -> None:
    named = paths(text_of(guide)) - set(recipes())
    assert len(named) >= 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert [path for path in recipes() if (ROOT / path).exists()] == [], "recipes make new files"


@pytest.mark.parametrize("guide", GUIDES)
def test_every_test_that_a_guide_names_exists(guide: str) -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", text_of(guide)))
    assert [name for name in sorted(names) if f"def {name}(" not in source] == []
    files = {path.name for path in ROOT.glob("tests/**/test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", text_of(guide))) <= files


@pytest.mark.parametrize("guide", GUIDES)
def test_every_file_that_a_guide_names_without_its_folder_exists(guide: str) -> None:
    """As ``loader.py`` in a list of files of one folder."""
    known = {path.name for top in TOPS for path in ROOT.glob(f"{top}/**/*.py")}
    assert set(re.findall(r"`(\w+\.py)`", text_of(guide))) <= known


@pytest.mark.parametrize("guide", GUIDES)
def test_files_listed_of_a_folder_lie_in_it(guide: str) -> None:
    lists = re.findall(r"((?:`\w+\.py`[^`]*)+)(?:`\w+`[^`]*)*of `([\w/]+/)`", text_of(guide))
    assert lists or guide != "ARCHITECTURE.md"
    files = [folder + name for text, folder in lists for name in re.findall(r"\w+\.py", text)]
    assert [path for path in files if not (ROOT / path).exists()] == []


def test_guides_are_short() -> None:
    assert len(text_of("ARCHITECTURE.md").splitlines()) < 90
    assert len(text_of("CONTRIBUTING.md").splitlines()) < 150


def test_every_block_of_code_compiles() -> None:
    assert len(blocks()) == 6
    for block in blocks():
        compile(block, "CONTRIBUTING.md", "exec")


def load(monkeypatch: pytest.MonkeyPatch, path: str) -> ModuleType:
    """A recipe's file as the module that its path says."""
    name = path.removeprefix("integrations/").removesuffix(".py").replace("/", ".")
    package, _, _ = name.rpartition(".")
    if package.startswith("zaq_") and package not in sys.modules:
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(recipes()[path], path, "exec"), module.__dict__)
    return module


def run_tests_of(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    torch.manual_seed(0)
    tests = [value for name, value in vars(load(monkeypatch, path)).items() if name[:5] == "test_"]
    assert tests
    for test in tests:
        test()


def test_the_recipe_for_a_host_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (entry,) = re.findall(r"`(baked = \S+)` below `zaq.hosts =`", text_of("CONTRIBUTING.md"))
    installed = tmp_path / "zaq_baked-0.dist-info"  # what an installation leaves on the path
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: zaq_baked\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[zaq.hosts]\n{entry}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    invalidate_caches()
    load(monkeypatch, "integrations/zaq_baked/host.py")
    assert "baked" in host_names()
    run_tests_of(monkeypatch, "tests/integrations/zaq_baked/test_host.py")

    model, images = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval(), torch.zeros(2, 3, 8, 8)
    with pytest.raises(
        ValueError, match="baked leaves activations float; use activation_bits=None"
    ):
        apply("pwlq", model, Request(4, 8, example_inputs=(images,), host="baked"))
    with pytest.raises(ValueError, match="host must be one of baked, executorch, fx"):
        find_host("backed")


def test_the_recipe_for_a_strategy_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, "zaq_plugin/strategies/narrow.py")
    run_tests_of(monkeypatch, "tests/zaq_plugin/strategies/test_narrow.py")


def test_the_recipe_for_a_format_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In kernels, a file of JSON, a method and another host, by its line of the table alone."""
    from networks import Net, perturb

    (text,) = re.findall(r'^`("peak": Line\(.*)`$', text_of("CONTRIBUTING.md"), re.MULTILINE)
    (line,) = eval("{" + text + "}", {"Line": names.Line, "Name": names.Name}).values()
    monkeypatch.setitem(names.FORMATS, "peak", line)
    load(monkeypatch, "zaq_plugin/pwlq/peak.py")
    run_tests_of(monkeypatch, "tests/zaq_plugin/pwlq/test_peak.py")
    peak = spec_from_name("peak4")
    assert spec_from_json(peak.to_json()) == peak
    assert peak.label.startswith(names.in_words("peak4"))

    torch.manual_seed(0)
    model, images = perturb(Net(10)).requires_grad_(False), torch.randn(8, 3, 17, 17)
    request = Request(
        4, 8, example_inputs=(images[:2],), images=images, overrides={"*": peak}, host="pt2e"
    )
    student = apply("pwlq+gptq", model, request).model
    for layer in student_of(student).layers().values():
        assert layer.quantizer.spec == peak
        assert len(layer.quantized()[0].unique()) <= 15
    converted = find_host("pt2e").convert(student)
    assert converted(images).shape == (8, 10)
