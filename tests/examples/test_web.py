"""The page runs the packed file in a real browser, says what ONNX Runtime says, and asks nobody."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnxruntime
import pytest
from chromium import EXECUTABLE, Chromium

ROOT = Path(__file__).parents[2]
WEB = ROOT / "examples" / "web"
PLACES = (
    ROOT / "node_modules",
    *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep))),
)
MODULES = next((p for p in PLACES if (p / "onnxruntime-web" / "dist").is_dir()), None)


def load_build() -> Any:
    spec = spec_from_file_location("web_build", WEB / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MODULES is None:
        pytest.skip("onnxruntime-web is not there: npm install onnxruntime-web, or set NODE_PATH")
    out = tmp_path_factory.mktemp("site")
    load_build().build(MODULES, out)
    return out


@pytest.fixture(scope="module")
def origin(site: Path) -> Iterator[str]:
    with load_build().server(site, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if not EXECUTABLE:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.call("Page.navigate", url=f"{origin}/index.html")
        browser.wait_for("['done', 'failed'].includes(document.body?.dataset.state)", 180)
        yield browser


def cells(page: Chromium) -> dict[str, list[str]]:
    rows = page.value(
        "JSON.stringify([...document.querySelectorAll('tbody tr')].map(row => "
        "[row.dataset.form, [...row.querySelectorAll('td')].map(cell => cell.textContent)]))"
    )
    return dict(json.loads(rows))


def answers(site: Path) -> dict[str, Any]:
    """ONNX Runtime's, in Python, on the images that the page has."""
    stored = json.loads((site / "images.json").read_text())
    pixels = np.array(stored["pixels"], np.float32).reshape(-1, 1, 8, 8) / 16
    images = ((pixels - stored["mean"]) / stored["deviation"]).astype(np.float32)
    by_form = {"labels": np.array(stored["labels"])}
    for form in ("float", "int8", "packed"):
        session = onnxruntime.InferenceSession(site / f"{form}.onnx")
        by_form[form] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return by_form


@pytest.mark.slow
def test_the_page_says_what_onnx_runtime_says(page: Chromium, site: Path) -> None:
    assert page.value("document.body.dataset.state") == "done", page.value(
        "document.body.innerText"
    )
    table, expected = cells(page), answers(site)
    assert list(table) == ["float", "int8", "packed"]
    for form, (size, load, each, right, agrees, _) in table.items():
        classes = expected[form].argmax(1)
        assert float(size) == pytest.approx(
            (site / f"{form}.onnx").stat().st_size / 1000, abs=0.051
        )
        assert float(load) > 0
        assert float(each) > 0
        # WebAssembly sums in another order: an image on the edge may change sides.
        for text, against in ((right, expected["labels"]), (agrees, expected["float"].argmax(1))):
            share = 100 * (classes == against).mean()
            assert float(text.rstrip(" %")) == pytest.approx(share, abs=100 / len(classes) + 0.06)
    assert float(table["packed"][5]) == 0, (
        "the packed file's answer is the int8 file's, bit for bit"
    )
    shown = page.value(
        "[...document.querySelectorAll('#images b')].map(b => b.textContent).join('')"
    )
    assert len(shown) == 45
    same = sum(int(a) == b for a, b in zip(shown, expected["packed"].argmax(1), strict=False))
    assert same >= 44


@pytest.mark.slow
def test_nothing_is_asked_of_other_servers_and_nothing_fails(page: Chromium, origin: str) -> None:
    page.value("1")  # lets the last events in
    asked = [url for url in page.requested if not url.startswith("data:")]
    assert [url for url in asked if not url.startswith(f"{origin}/")] == []
    assert sum(url.endswith(".wasm") for url in asked) == 1
    assert page.said == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_sticks_out_and_text_can_be_read(page: Chromium, width: int, scheme: str) -> None:
    page.look(width, 900, scheme)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("document.querySelector('.table').scrollWidth <= "
                      "document.querySelector('.table').clientWidth + 1")  # fmt: skip
    colours = page.value(
        "JSON.stringify(['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k]))"
    )
    ink, ground = (sum(map(int, re.findall(r"\d+", one)[:3])) for one in json.loads(colours))
    assert (ink < ground) == (scheme == "light")
    assert abs(ink - ground) > 500
    assert page.picture().startswith(b"\x89PNG")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    asked = ["--node-modules", str(tmp_path), "--out", str(tmp_path / "web")]
    done = subprocess.run(
        [sys.executable, str(WEB / "build.py"), *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        "is missing. Install ONNX Runtime's package with: npm install onnxruntime-web"
        in done.stderr
    )


def test_sources_name_no_other_server() -> None:
    for name in ("index.html", "page.js", "style.css"):
        assert not re.search(
            r"(https?:)?//[\w.-]+\.\w", (WEB / name).read_text(encoding="utf-8")
        ), name
