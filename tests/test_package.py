"""The package as a whole: which way imports point, what an import costs, and that it installs."""

import ast
import configparser
import functools
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

import zaq_plugin

ROOT = Path(__file__).parents[1]
PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"
CORE = ROOT / "zaq_plugin"
INTEGRATIONS = ROOT / "integrations"
ZOO = "zaq_timm"
# Tools for devices take PT2E's graphs: they stand above that host, and add no algorithm to it.
ABOVE = {"zaq_executorch": {"zaq_pt2e"}, "zaq_litert": {"zaq_pt2e"}}
PROJECT = {"zaq_plugin", "zaq_fx", "zaq_pt2e", "zaq_nncf", "zaq_onnx", *ABOVE, ZOO}
# What each package may import besides the standard library and zaq_plugin.
ALLOWED = {
    "zaq_plugin": {"torch", "numpy", "safetensors", "rich"},
    "zaq_fx": {"torch"},
    "zaq_pt2e": {"torch", "numpy", "torchao"},
    "zaq_nncf": {"torch", "nncf", "safetensors"},
    "zaq_onnx": {"torch", "numpy", "onnx", "onnxruntime", "onnxscript", "openvino"}
    | {"cv2", "tract", "tvm", "tinygrad"},
    "zaq_executorch": {"torch", "torchao", "numpy", "executorch"},
    "zaq_litert": {"torch", "torchao", "numpy", "litert_torch", "ai_edge_litert", "flatbuffers"},
}


def sources(package: Path) -> list[Path]:
    files = sorted(package.rglob("*.py"))
    assert files, f"no sources under {package}"
    return files


def module_name(path: Path) -> str:
    base = INTEGRATIONS if path.is_relative_to(INTEGRATIONS) else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Yields the dotted name of everything that a file imports, at whatever depth."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def third_party(name: str) -> str | None:
    top = name.split(".")[0]
    return None if top in sys.stdlib_module_names or top in PROJECT else top


def packages() -> list[Path]:
    return [CORE, *sorted(p.parent for p in INTEGRATIONS.glob("*/__init__.py"))]


@pytest.fixture(params=packages(), ids=lambda path: path.name)
def package(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_the_import_reader_sees_every_kind_of_import(tmp_path: Path) -> None:
    path = CORE / "pwlq" / "imaginary.py"
    code = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from ..g import h\n"

    class Text(type(path)):  # a path whose text is given, so that nothing is written to the tree
        def read_text(self, *_: object, **__: object) -> str:
            return code

    seen = set(imports(Text(path)))
    assert seen == {"a.b", "c.d", "zaq_plugin.pwlq.e", "zaq_plugin.g.h"}


@pytest.mark.parametrize(
    "package", [path for path in packages() if path.name != ZOO], ids=lambda path: path.name
)
def test_packages_import_only_what_they_may(package: Path) -> None:
    """All but the model zoo, which stands above everything and may import any host."""
    wrong = []
    for path in sources(package):
        for name in imports(path):
            top = third_party(name)
            if top is not None and top not in ALLOWED[package.name]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_arrows_between_packages_point_down(package: Path) -> None:
    """Zoo -> devices -> hosts and export -> zaq_plugin; no host knows another, nobody the zoo."""
    below = {package.name, "zaq_plugin", *ABOVE.get(package.name, ())}
    below = PROJECT if package.name == ZOO else below
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if name.split(".")[0] in PROJECT - below
    ]
    assert not wrong


def test_the_number_format_imports_nothing_else_of_the_project() -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in sources(CORE / "pwlq")
        for name in imports(path)
        if name.split(".")[0] in PROJECT and not name.startswith("zaq_plugin.pwlq")
    ]
    assert not wrong


def test_strategies_stand_on_top_of_the_core() -> None:
    """They use zero_shot, ptq and pwlq; none of those knows them.

    The package's face, which nothing in it imports from, hands their names on.
    """
    above, face = CORE / "strategies", CORE / "__init__.py"
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(CORE)
        if not path.is_relative_to(above) and path != face
        for name in imports(path)
        if name.startswith("zaq_plugin.strategies")
    ]
    assert not wrong
    used = {name.split(".")[1] for path in sources(above) for name in imports(path)
            if name.startswith("zaq_plugin.")}  # fmt: skip
    assert {"zero_shot", "ptq", "pwlq"} <= used


def test_no_part_of_the_core_imports_what_its_face_hands_on() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(CORE)
        for name in imports(path)
        if name.rpartition(".")[0] == "zaq_plugin" and name.rpartition(".")[2] in zaq_plugin._LATER
    ]
    assert not wrong


def test_the_core_does_not_touch_torch_ao() -> None:
    """Neither imported nor reached as an attribute: torch.ao is on its way out of torch."""
    wrong = []
    for path in sources(CORE):
        dotted = set(imports(path))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                dotted.add(ast.unparse(node))
        wrong += [
            f"{path.relative_to(ROOT)}: {name}"
            for name in dotted
            if f"{name}.".startswith(("torch.ao.", "torch.quantization."))
        ]
    assert not wrong


def test_parts_of_the_core_do_not_import_in_circles() -> None:
    def part(name: str) -> str:
        return ".".join(name.split(".")[:2])

    graph: dict[str, set[str]] = {}
    for path in sources(CORE):
        own = part(module_name(path))
        if own == "zaq_plugin":
            continue  # __init__ re-exports from all of them
        parts = {part(name) for name in imports(path) if name.startswith("zaq_plugin.")}
        graph.setdefault(own, set()).update(parts - {own})
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"parts of zaq_plugin import each other: {error.args[1]}")
    assert "zaq_plugin.pwlq" in order


def files_that_import_each_other(graph: dict[str, set[str]]) -> list[str] | None:
    """The modules of one circle, each importing the next; None if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))  # graphlib names a module before what imports it
    return None


def imports_between(files: dict[str, Path]) -> dict[str, set[str]]:
    """Which modules each module imports, at whatever depth; packages' faces are left out."""
    modules = {name: path for name, path in files.items() if path.name != "__init__.py"}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        # `from package.module import thing` and `from package import module` name the same file.
        dotted = {part for full in imports(path) for part in (full, full.rpartition(".")[0])}
        graph[name] = (dotted & modules.keys()) - {name}
    return graph


def test_no_file_imports_itself_through_others() -> None:
    """Lazy imports and those for type checkers count: a circle of ideas is one all the same."""
    files = {module_name(path): path for top in packages() for path in sources(top)}
    graph = imports_between(files)
    circle = files_that_import_each_other(graph)
    assert circle is None, f"these files import each other: {' -> '.join(circle or [])}"
    assert "zaq_plugin.student.view" in graph["zaq_plugin.student.walk"]
    assert "zaq_plugin.student.layer" in graph["zaq_fx.student"] | graph["zaq_plugin.student.view"]


def test_a_circle_of_lazy_and_typing_imports_is_seen(tmp_path: Path) -> None:
    base = INTEGRATIONS / "imaginary"
    code = {
        "a": "def f():\n    from imaginary.b import g\n",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from imaginary import c\n",
        "c": "import imaginary.a\n",
        "d": "from . import a\n",
    }

    class Text(type(base)):
        def read_text(self, *_: object, **__: object) -> str:
            return code[self.stem]

    files = {f"imaginary.{name}": Text(base / f"{name}.py") for name in code}
    graph = imports_between(files)
    assert graph["imaginary.d"] == {"imaginary.a"}
    circle = files_that_import_each_other(graph)
    assert circle is not None
    assert set(circle) == {"imaginary.a", "imaginary.b", "imaginary.c"}
    assert all(after in graph[name] for name, after in pairwise(circle))
    del graph["imaginary.c"]
    assert files_that_import_each_other(graph) is None


def is_module(name: str) -> bool:
    base = ROOT if name.split(".")[0] in ("zaq_plugin", "benchmarks") else INTEGRATIONS
    path = base.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def private_uses(code: str) -> list[tuple[str, str]]:
    """Module and name of what a file takes of our packages that begins with an underscore.

    It may be imported, read as an attribute of a module, or set by a monkeypatch.
    """
    tree, modules, uses = ast.parse(code), {}, []
    ours = {*PROJECT, "benchmarks"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.split(".")[0] in ours]
            modules.update({alias.asname or alias.name: alias.name for alias in names})
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ours:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if is_module(full):
                    modules[alias.asname or alias.name] = full
                else:
                    uses.append((str(node.module), alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            uses.append((modules.get(ast.unparse(node.value), ""), node.attr))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            first, *rest = [a.value if isinstance(a, ast.Constant) else a for a in node.args] or [0]
            if isinstance(first, str):
                uses.append((first.rpartition(".")[0], first.rpartition(".")[2]))
            elif isinstance(first, ast.AST) and rest and isinstance(rest[0], str):
                uses.append((modules.get(ast.unparse(first), ""), rest[0]))
    return [
        (module, name)
        for module, name in uses
        if module.split(".")[0] in ours and name.startswith("_") and not name.startswith("__")
    ]


def mirrors(test: Path, module: str) -> bool:
    """Whether a test stands at a module's place: ``test_NAME.py``, or ``test_NAME_more.py``.

    What is private of a tool stands in ``_compat``, and ``test_host_facts.py`` pins it.
    """
    parts = [part for part in test.with_suffix("").parts if part not in ("tests", "integrations")]
    *folder, name = module.split(".")
    leaf = "host_facts" if name == "_compat" else name.lstrip("_")
    return parts[:-1] == folder and f"{parts[-1]}_".startswith(f"test_{leaf}_")


MIRRORED = (CORE, INTEGRATIONS / ZOO)
TOPICS = {
    "zaq_plugin": {"public_names": "the package's face"},
    "zaq_plugin/ptq": {
        "inputs_stay": "of every function of the part",
        "masks": "minus infinity, whoever meets it",
    },
    "zaq_plugin/pwlq": {"formats": "what every format must do", "laws": "what holds of any spec"},
    "zaq_plugin/strategies": {
        "cuda": "all methods on a GPU",
        "formulas": "each method against its paper",
        "output_margin": "ranges of outputs, whoever sets them",
        "shared_layers": "layers called twice, in several methods",
    },
    "zaq_plugin/zero_shot": {
        "cuda": "training on a GPU",
        "distributed": "training on two ranks",
        "frameworks": "the loader in others' trainers",
        "never_worse": "the promise of the whole run",
        "resume": "the promise of the whole run",
    },
    "integrations/zaq_timm": {"weight_standardisation": "timm's own layers, in the core"},
    "integrations/zaq_timm/zoo": {"kill": "runs that end in the middle"},
}
"""Tests of no single module, by folder, and what they are of."""


def test_tests_stand_at_their_sources_places() -> None:
    homeless = {
        (folder.relative_to(ROOT).as_posix(), path.stem.removeprefix("test_"))
        for top in MIRRORED
        for folder in [top, *(p.parent for p in top.rglob("__init__.py"))]
        for path in (ROOT / "tests" / folder.relative_to(ROOT)).glob("test_*.py")
        if not any(mirrors(path.relative_to(ROOT), module_name(s)) for s in folder.glob("*.py"))
    }
    assert homeless == {(folder, name) for folder, names in TOPICS.items() for name in names}
    folders = {p.parent.relative_to(ROOT) for top in MIRRORED for p in top.rglob("__init__.py")}
    there = {p.parent.relative_to(ROOT / "tests") for p in (ROOT / "tests").rglob("test_*.py")}
    own = [name for name in there if name.parts[:1] == ("zaq_plugin",) or ZOO in name.parts]
    assert set(own) <= folders


BY_OTHERS = {
    ("tests/test_package.py", "zaq_plugin._LATER"): "the face's table, which this file holds apart",
    ("tests/zaq_plugin/test_public_names.py", "zaq_plugin._LATER"): "the face is an __init__.py",
    ("tests/integrations/zaq_fx/test_student.py", "zaq_fx._compat._ATTRS"): "the host's own names",
}
"""Test and private name that it may use all the same, and why."""


def test_tests_and_benchmarks_leave_private_names_to_their_module() -> None:
    used = {
        (path.relative_to(ROOT).as_posix(), f"{module}.{name}")
        for top in ("tests", "benchmarks", "examples")
        for path in sources(ROOT / top)
        for module, name in private_uses(path.read_text(encoding="utf-8"))
        if not mirrors(path.relative_to(ROOT), module)
    }
    assert used == set(BY_OTHERS)


def test_private_uses_of_every_kind_are_seen() -> None:
    code = (
        "import zaq_plugin.pwlq.search as s\nfrom zaq_plugin.pwlq import levels\n"
        "from zaq_plugin.files import write_whole, _umask\nimport torch\n"
        "s._a; levels._b(); torch._c; levels.d; s.__name__\n"
        "def f(monkeypatch):\n"
        "    monkeypatch.setattr(levels, '_e', 1)\n"
        "    monkeypatch.setattr('zaq_fx.host._f', 1)\n"
        "    monkeypatch.setattr(levels, 'g', 1)\n"
    )
    assert set(private_uses(code)) == {
        ("zaq_plugin.files", "_umask"),
        ("zaq_plugin.pwlq.search", "_a"),
        ("zaq_plugin.pwlq.levels", "_b"),
        ("zaq_plugin.pwlq.levels", "_e"),
        ("zaq_fx.host", "_f"),
    }
    assert mirrors(Path("tests/zaq_plugin/ptq/test_fold_transposed.py"), "zaq_plugin.ptq.fold")
    assert mirrors(Path("tests/zaq_plugin/test_versions.py"), "zaq_plugin._versions")
    assert not mirrors(Path("tests/zaq_plugin/ptq/test_folding.py"), "zaq_plugin.ptq.fold")
    assert not mirrors(Path("tests/zaq_plugin/test_fold.py"), "zaq_plugin.ptq.fold")


def python(code: str, **kwargs: object) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, **kwargs).stdout  # type: ignore[call-overload]


@pytest.mark.slow
def test_importing_the_core_loads_only_its_four_dependencies() -> None:
    code = "import sys, {}; print(*{{name.split('.')[0] for name in sys.modules}})"
    torch_alone = set(python(code.format("torch")).split())
    ours = set(python(code.format("zaq_plugin")).split())
    names = {name for name in ours - torch_alone if not name.startswith("_")}
    extra = names - sys.stdlib_module_names - {"numpy", "safetensors", "rich", "zaq_plugin"}
    # pip's hooks of editable installs sit in sys.modules without having been imported by us.
    assert {name for name in extra if not name.startswith("__editable__")} == set()
    assert "zaq_plugin" in names


@pytest.mark.slow
def test_importing_the_core_takes_at_most_1_3_times_as_long_as_torch() -> None:
    """Both are timed in one process after the other, so that a busy machine slows them alike."""
    code = (
        "import time; a = time.perf_counter(); import torch; b = time.perf_counter();"
        "import zaq_plugin; c = time.perf_counter(); print((c - a) / (b - a))"
    )
    python(code)  # reads the files once
    ratios = [float(python(code)) for _ in range(3)]
    assert median(ratios) <= 1.3, f"import zaq_plugin / import torch: {ratios}"


HOSTS = [path.name for path in packages() if path.name not in ("zaq_plugin", ZOO)]


@functools.cache
def words_at_import(version: str) -> dict[str, str]:
    """What each host says in one process whose torch is of that version."""
    code = (
        f"import importlib, json, torch; torch.__version__ = '{version}'; words = {{}}\n"
        f"for name in {HOSTS}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: words[name] = str(error)\n"
        "print(json.dumps(words))"
    )
    return dict(json.loads(python(code)))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(
    ("version", "text"), [("2.12.1", "is older than 2.13"), ("2.16.0", "is newer than any version")]
)
def test_hosts_refuse_a_torch_they_were_not_tested_with(name: str, version: str, text: str) -> None:
    """By its own words at import, before the host's code can fail on anything else."""
    assert words_at_import(version)[name].startswith(f"{name}: torch {version} {text}")


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def test_setup_cfg_lists_every_package_of_the_two_source_trees() -> None:
    listed = set(setup_cfg()["options"]["packages"].split())
    names = {module_name(path) for top in packages() for path in top.rglob("__init__.py")}
    assert listed == names


def test_every_directory_of_sources_is_a_package() -> None:
    wrong = {
        path.parent.relative_to(ROOT)
        for top in packages()
        for path in sources(top)
        if not (path.parent / "__init__.py").exists()
    }
    assert not wrong


def test_the_installed_package_is_this_one() -> None:
    assert metadata.version("zaq_plugin") == zaq_plugin.__version__
    assert setup_cfg()["metadata"]["name"] == "zaq_plugin"


def test_what_repeats_the_version_has_the_packages() -> None:
    version = zaq_plugin.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_extras_only_name_extras_that_exist() -> None:
    extras = setup_cfg()["options.extras_require"]
    for name in extras:
        for line in extras[name].split():
            if line.startswith("zaq_plugin["):
                assert set(line[len("zaq_plugin[") : -1].split(",")) <= set(extras), name


@pytest.mark.slow
def test_the_sdist_installs_and_works_from_any_folder(tmp_path: Path) -> None:
    def call(*command: str) -> None:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    here = str(tmp_path)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", here, str(ROOT))
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")

    sourced = {
        module_name(path).replace(".", "/") + ("/__init__.py" if init else ".py")
        for top in packages()
        for path in sources(top)
        for init in [path.name == "__init__.py"]
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.endswith(".py")} == sourced
    assert {f"{top.name}/py.typed" for top in packages()} <= names
    assert "zaq_timm/data/digits.safetensors" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= inside
    assert "tests/test_package.py" in inside

    for source in (sdist, wheel):
        target = tmp_path / f"from-{source.suffix[1:]}"
        pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
        call(*pip, "--target", str(target), str(source))
        lines = python(
            "import zaq_plugin, zaq_timm.digits as digits, torch;"
            "print(zaq_plugin.__file__);"
            "print(digits.digits_model()(torch.zeros(1, 1, 8, 8)).shape)",
            cwd=tmp_path,
            env={"PYTHONPATH": str(target), "PATH": ""},
        ).splitlines()
        assert Path(lines[0]).is_relative_to(target)
        assert lines[1] == "torch.Size([1, 10])"


@pytest.mark.slow
def test_an_installed_wheel_runs_the_demo(tmp_path: Path) -> None:
    """In an environment of its own, which finds everything but zaq_plugin where these tests do."""

    def call(*command: str | Path) -> str:
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    build = ("-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    call(sys.executable, *build)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    if find_spec("twine") is not None:
        text = call(sys.executable, "-m", "twine", "check", "--strict", *wheel.parent.iterdir())
        assert text.count("PASSED") == 2
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    own = Path(call(tmp_path / "env" / "bin" / "python", "-c", PURELIB).strip())
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (own / "others.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", tmp_path / "env" / "bin" / "python")
    call(*pip, "install", "-q", "--no-deps", "--ignore-installed", wheel)

    python, command = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "zaq-quantize"
    place = call(python, "-c", "import zaq_plugin, zaq_timm; print(zaq_plugin.__file__)").strip()
    assert Path(place).is_relative_to(own)
    assert call(command, "--version") == f"zaq-quantize {zaq_plugin.__version__}\n"
    assert "PWLQ" in call(command, "demo")
    assert (tmp_path / "zaq-demo" / "report.html").is_file()


def test_the_packages_index_shows_the_papers() -> None:
    """And no address that nobody has set: CONTRIBUTING says where the repository's belongs."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["metadata"]["project_urls"].strip().splitlines()
    urls = {line.split(" = ")[1] for line in lines}
    assert urls == {"https://arxiv.org/abs/2002.00104", "https://arxiv.org/abs/2103.15263"}
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "`project_urls` of `setup.cfg`" in text
