"""The zoo's page: what it holds, and what it does in a real browser."""

from __future__ import annotations

import html.parser
import re
from collections.abc import Iterator
from typing import Any

import page_browser
import pytest
import torch

from zaq_plugin.report.images import png_bytes
from zaq_timm.zoo.page import ModelEntry, files_table, render_zoo_page

PROGRAM = page_browser.find_browser()
needs_browser = pytest.mark.skipif(
    PROGRAM is None,
    reason=f"no browser is installed: none of {', '.join(page_browser.NAMES)} is on the path",
)


def row(key: str, size: int, agreement: float, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "status": "done",
        "reason": None,
        "model": key,
        "host": "pt2e",
        "weights_from": "random",
        "calibration": "smooth noise",
        "mac_bits": 4,
        "stored_bits": 5,
        "activation_bits": 8,
        "layers": 2,
        "quantized": 1,
        "float_bytes": 6 * size,
        "size_bytes": size,
        "divergence": 0.01,
        "agreement": agreement,
        "notes": [],
        "input": "3x32x32",
        "batch": 8,
        "measured": {"seconds": 3.0, "peak_bytes": 5 * 10**8, "attempts": 1},
        **more,
    }


DETAILS = {
    "layers": [
        {
            "name": "conv1",
            "kind": "Conv2d",
            "numel": 432,
            "quantized": True,
            "spec": "PWLQ 4b",
            "mac_bits": 4,
            "stored_bits": 5,
            "stored_bytes": 300,
            "sqnr_db": 21.5,
        },
        {
            "name": "head",
            "kind": "Linear",
            "numel": 10,
            "quantized": False,
            "reason": "excluded by 'head'",
        },
    ],
    "sensitivities": [{"layer": "conv1", "divergence": 0.02, "mac_bits": 4, "stored_bits": 5}],
    "frontier": [
        {"stored_bits": 3.0, "divergence": 0.5, "chosen": False},
        {"stored_bits": 4.4, "divergence": 0.05, "chosen": True},
        {"stored_bits": 8.0, "divergence": 0.0, "chosen": False},
    ],
    "levels": [
        {
            "layer": "conv1",
            "channel": 3,
            "spec": "PWLQ 4b",
            "levels": [-0.5, -0.1, 0.0, 0.1, 0.4],
            "counts": [1, 5, 9, 4, 2],
        }
    ],
    "curve": [
        {"step": 5, "KL": 0.4, "divergence": 0.2, "λ layer1": 0.4, "λ layer2": 0.6},
        {"step": 10, "KL": 0.3, "divergence": 0.1, "λ layer1": 0.3, "λ layer2": 0.7},
    ],
}
MANIFEST = {"model": "beta", "versions": {"torch": "2.15.0"}, "stages": [{"name": "load"}]}
PNG = png_bytes(torch.zeros(8, 16, 3, dtype=torch.uint8))
HOSTILE = "<script>alert(1)</script>"
ENTRIES = [
    ModelEntry(row("gamma", 900_000, 98.0), DETAILS, MANIFEST, PNG),
    ModelEntry(row("alpha", 12_000_000, 91.5), DETAILS, MANIFEST, PNG),
    ModelEntry(row("beta", 2_500_000, 99.0, notes=["a remark"]), DETAILS, MANIFEST, PNG),
    ModelEntry({"key": "delta", "status": "left out", "reason": f"no way: {HOSTILE}"}),
]
SETTINGS = {"weights": "pwlq4", "activations": 8, "budget": ""}


@pytest.fixture(scope="module")
def page() -> str:
    return render_zoo_page(ENTRIES, SETTINGS)


class Checker(html.parser.HTMLParser):
    """Every opened element is closed; ids come once; every link within the page leads somewhere."""

    EMPTY = frozenset({"meta", "img", "br", "path", "circle", "rect", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src"):
                self.links.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """It closes itself."""

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    inside = {link[1:] for link in checker.links if link.startswith("#")}
    assert {f"m-{e.row['key']}" for e in ENTRIES} <= inside <= set(checker.ids)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in checker.links)
    assert HOSTILE not in page
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_every_model_has_its_page_with_all_there_is(page: str) -> None:
    for entry in ENTRIES:
        (section,) = re.findall(
            rf'<section class="model" id="m-{entry.row["key"]}">.*?</section>', page, re.DOTALL
        )
        if entry.row["status"] != "done":
            assert "left out: no way: &lt;script&gt;" in section
            continue
        for text in ("4 / 5", "conv1", "excluded by", "Which layers mind", "Widths by budget"):
            assert text in section
        for text in ("Zero-shot fine-tuning", "student and teacher differ", ">layer2<"):
            assert text in section
        assert section.count("<svg") == 5
        assert section.count("data:image/png") == 1
        assert "Manifest" in section
    assert "a remark." in page


def test_random_weights_are_said_to_be_random(page: str) -> None:
    assert "All of these models have random weights" in page
    real = [ModelEntry(row("a", 1000, 90.0, weights_from="timm's pretrained ones"))]
    assert "random weights" not in render_zoo_page(real, {})


def test_accuracy_is_shown_where_there_is_any() -> None:
    scores = {"top1": 71.0, "float_top1": 72.5, "eval_agreement": 95.0, "eval_images": 200}
    text = render_zoo_page([ModelEntry(row("a", 1000, 90.0, **scores))], {})
    assert "Top-1 (%) against size" in text
    assert "Rings: the float model" in text
    assert "71.00" in text
    assert "72.50" in text


def test_a_zoo_of_nothing_is_a_page(page: str) -> None:
    assert "0 of 0 models" in render_zoo_page([], {})
    assert "0 of 1 models" in render_zoo_page([ENTRIES[-1]], {})


@pytest.fixture(scope="module")
def browser(page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "report.html").write_text(page, encoding="utf-8")
    with page_browser.Browser(PROGRAM, folder / "profile") as session:
        session.address = (folder / "report.html").as_uri()
        yield session


ORDER = "[...document.querySelectorAll('#overview tbody th')].map(e => e.innerText)"


def visible(browser: Any) -> list[str]:
    return browser.value(
        "[...document.querySelectorAll('main > section')]"
        ".filter(e => e.getBoundingClientRect().height > 0).map(e => e.id)"
    )


@needs_browser
def test_the_table_sorts_by_clicks_numbers_as_numbers(browser: Any) -> None:
    browser.open(browser.address)
    assert browser.value(ORDER) == ["gamma", "alpha", "beta", "delta"]
    heads = browser.value(
        "[...document.querySelectorAll('#overview thead th')].map(e => e.innerText.trim())"
    )
    for title, expected in (
        ("Model", ["alpha", "beta", "delta", "gamma"]),
        ("Size (kB)", ["gamma", "beta", "alpha", "delta"]),
        ("Size (kB)", ["alpha", "beta", "gamma", "delta"]),  # again: down; what has none stays last
    ):
        place = [" ".join(h.split()) for h in heads].index(title) + 1
        browser.click(f"#overview thead th:nth-child({place}) button")
        assert browser.value(ORDER) == expected


@needs_browser
def test_a_click_on_a_model_or_a_dot_leads_to_its_page_and_back(browser: Any) -> None:
    browser.open(browser.address)
    assert visible(browser) == ["overview"]
    browser.click("#overview tbody th a")
    assert visible(browser) == ["m-gamma"]
    browser.click("#m-gamma .crumbs a:last-child")
    assert visible(browser) == ["m-alpha"]
    browser.click("#m-alpha .crumbs a")
    assert visible(browser) == ["overview"]
    browser.click("a.dot[href='#m-beta'] circle")
    assert visible(browser) == ["m-beta"]
    browser.open(browser.address + "#m-delta")
    assert visible(browser) == ["m-delta"]


@needs_browser
def test_nothing_is_fetched_and_nothing_is_complained_about(browser: Any) -> None:
    browser.requested.clear()
    browser.open(browser.address + "?again")
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    outside = [u for u in browser.requested if not u.startswith(("file:", "data:"))]
    assert outside == []
    assert browser.logged == []
    pictures = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.value(pictures)


@needs_browser
@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_runs_over_the_edge(browser: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    try:
        for place in ("", "#m-beta", "#m-delta"):
            browser.open(f"{browser.address}?{width}{place}")
            assert browser.value("document.documentElement.scrollWidth") <= width
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")


@needs_browser
def test_print_shows_the_view_in_black_on_white_within_the_paper(browser: Any) -> None:
    for place, few in (("", 2), ("#m-beta", 3)):
        browser.open(f"{browser.address}?print{place}")
        pdf = browser.pdf()
        assert pdf.startswith(b"%PDF")
        pages = len(re.findall(rb"/Type\s*/Page[^s]", pdf))
        assert 1 <= pages <= few
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        browser.open(f"{browser.address}?media")
        color, ground = browser.value(
            "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
        )
        assert (color, ground) == ("rgb(0, 0, 0)", "rgb(255, 255, 255)")
        hidden = "getComputedStyle(document.querySelector('header nav')).display"
        assert browser.value(hidden) == "none"
        # A4 without its margins is 184 mm wide.
        width = round(184 / 25.4 * 96)
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        table = "document.querySelector('#overview table').getBoundingClientRect().right"
        assert browser.value(table) <= width + 1
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
        browser.call("Emulation.clearDeviceMetricsOverride")


def heads(page: str) -> list[str]:
    return [re.sub("<[^>]*>", "", head) for head in re.findall(r"<th\b.*?</th>", page, re.DOTALL)]


def test_without_files_there_is_no_table() -> None:
    assert files_table([{"key": "net"}, {"key": "other", "files": []}]) == ""


def test_files_of_several_kinds_side_by_side() -> None:
    onnx = {"file": "model.onnx", "bytes": 54_000, "zipped_bytes": 50_000, "agreement": 96.9}
    pte = {
        **onnx,
        "file": "model.pte",
        "bytes": 88_000,
        "archive_bytes": 41_000,
        "float_bytes": 320_000,
        "float_zipped_bytes": 300_000,
        "stock_bytes": 89_000,
        "stock_zipped_bytes": 80_000,
        "ms": 0.25,
        "float_ms": 0.9,
        "stock_ms": 0.26,
    }
    page = files_table([{"key": "net", "files": [onnx, pte]}])
    titles = heads(page)
    sizes = ("kB", "kB zipped", "kB packed", "Float kB", "Stock int8 kB zipped")
    for text in (*sizes, "Latency (ms)"):
        assert any(text in head for head in titles), text
    assert not any("Top-1" in head for head in titles)
    assert "model.onnx" in page
    assert "model.pte" in page
    assert "0.26" in page
    assert "41.0" in page
    assert not any("Float kB packed" in head for head in titles)
