"""The page: well-formed, self-contained, safe against whatever names and texts come in."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import zaq_plugin.report.page as page_module
from zaq_plugin.pwlq import PWLQSpec, quantize
from zaq_plugin.report import (
    Audit,
    Figure,
    Headline,
    LayerRecord,
    Manifest,
    ResultRow,
    image_grid,
    plots,
    render_page,
    write_page,
)
from zaq_plugin.report.columns import Column
from zaq_plugin.report.headline import featured_row

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&"


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def shown(self) -> str:
        return "".join(t for tag, t in self.text if tag not in ("script", "style"))


def example(name: str = "net") -> Manifest:
    protocol = {
        "first_last": 8,
        "residual_adds": "float",
        "symmetry": "symmetric",
        "granularity": "per channel",
        "calibration": name,
    }
    manifest = Manifest(model=name, versions={"zaq-plugin": "1.2.3", "torch": name})
    manifest.seeds = {name: 7}
    manifest.specs = {name: PWLQSpec(), "text": name}
    manifest.ranges = {name: [-1.0, 2.5]}
    manifest.protocol = {"calibration": name}
    manifest.results = [
        ResultRow("FP32", 32, 32, 32, 32, size_bytes=4000, top1=90.0, agreement=100.0),
        ResultRow(name, 4, 5, 8, 8, 700, 25.0, 89.5, 97.0, seeds=3, spread=0.25, protocol=protocol),
        ResultRow("uniform", 4, 4, 8, 8, 600, 18.0, 80.0, 85.0, protocol=protocol),
    ]
    records = [
        LayerRecord(
            f"{name}.0", name, 90, True, name, name, 4, 5, 60, 25.0, name, 4.5, activation=name
        ),
        LayerRecord(f"{name}.1", name, 10, False, f"why: {name}"),
        LayerRecord("exact", "Conv2d", 9, True, None, "x", 4, 5, 60, float("inf")),
    ]
    manifest.layers = Audit(records)
    manifest.audits = {name: Audit(records), "empty": Audit()}
    with manifest.stage(name, fact=name, many=list(range(20)), nested={name: True}):
        pass
    with pytest.raises(RuntimeError), manifest.stage("broken"):
        raise RuntimeError(name)
    return manifest


def figures(name: str = "net") -> list[Figure]:
    w = torch.linspace(-1, 1, 64).pow(3).reshape(2, 32)
    row = ResultRow(name, 4, 5, 8, 8, top1=50.0)
    return [
        Figure(name, plots.weight_histogram(w, quantize(w, PWLQSpec()), name=name), name, name),
        Figure("accuracy", plots.accuracy_over_bits([row], title=name), section=name),
        Figure("theory", plots.optimal_breakpoint_figure()),
        Figure("images", image_grid(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), name),
    ]


@pytest.mark.parametrize("name", ["net", EVIL, "a < b && c > d", "ünïcode ∞"])
def test_page_is_well_formed_and_shows_names_as_they_are(name):
    page = Page(render_page(example(name), figures(name), title=name, lead=name))
    assert page.shown().count(name) >= 15
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    scripts = [t for t in page.tags if t[0] == "script"]
    assert len(scripts) == 1
    for tag, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)


def test_page_is_one_file_that_refers_to_nothing_outside():
    text = render_page(example(), figures())
    assert not re.search(r"(?i)https?:|//[a-z]|@import|file:", text)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for key in ("src", "href", "xlink:href", "data", "action", "srcset"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:image/")), (tag, value)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    script = next(t for tag, t in page.text if tag == "script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_ids_are_unique_and_every_reference_has_its_target():
    text = render_page(example(), [*figures(), *figures()])
    page = Page(text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a.get(k) or "" for _, a in page.tags for k in ("href", "xlink:href")]
    targets = {link[1:] for link in links if link.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(ids)
    # Both copies of every picture have marks of their own, and lead to them alone.
    assert sum(bool(re.fullmatch(r"f\d+-mark-\w+", target)) for target in targets) >= 2


def cells(text: str, label: str) -> list[list[str]]:
    """A table's text, rows of cells, found by its aria-label."""
    start = text.index(f'aria-label="{label}"')
    body = text[start : text.index("</table>", start)]
    rows = re.findall(r"<tr.*?</tr>", body, flags=re.DOTALL)
    return [
        [
            Page(f"<p>{c}</p>").shown().replace("\xa0", " ")
            for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        ]
        for row in rows
    ]


def test_results_table_tells_both_widths_seeds_and_protocol():
    text = render_page(example())
    head, *rows = cells(text, "Results")
    assert head[:3] == ["Method", "Weight bits, MAC / stored", "Activation bits, MAC / stored"]
    assert [row[1] for row in rows] == ["32 / 32", "4 / 5", "4 / 4"]
    assert rows[1][head.index("Top-1 (%)")] == "89.50 ± 0.25"
    assert rows[1][head.index("Seeds")] == "3"
    shown = Page(text).shown()
    assert "Protocol: bits of first and last layer: 8; residual adds: float" in shown
    assert "MAC bits: width of the multiplier." in shown


def test_layers_table_lists_what_was_not_quantized_and_why():
    head, *rows = cells(render_page(example()), "Layers")
    last = head.index("Format, or why not quantized")
    assert rows[1][0] == "net.1"
    assert rows[1][last] == "not quantized: why: net"
    assert rows[0][head.index("Bits, MAC / stored")] == "4 / 5"
    assert rows[2][head.index("SQNR (dB)")] == "∞"


def test_columns_that_say_the_same_everywhere_are_told_once():
    records = [
        LayerRecord(f"l{i}", "Conv2d", 9, True, None, "x", 4, 5, kernel="int8", activation="u8")
        for i in range(3)
    ]
    text = render_page(Manifest(layers=Audit(records)))
    assert "Kernel" not in cells(text, "Layers")[0]
    assert "All quantized layers: input: u8; kernel: int8." in Page(text).shown()


def test_sort_keys_are_the_numbers_behind_the_text():
    text = render_page(example())
    assert 'data-k="1e999"' in text
    start = text.index('aria-label="Results"')
    row = text[start : text.index("</table>", start)].split("<tr")[3]
    keys = re.findall(r'data-k="([^"]*)"', row)
    assert [float(k) for k in keys[1:6]] == [5.04, 8.08, 700, 25.0, 89.5]


def test_stages_versions_and_failures_are_told():
    shown = Page(render_page(example())).shown()
    assert "many: [0, 1, 2, 3, 4, 5, 6, 7, … 20 values]" in shown
    assert "failed" in shown
    assert "RuntimeError: net" in shown
    assert "Written by zaq-plugin 1.2.3" in shown
    assert "policy=joint" in shown
    assert "[-1, 2.5]" in shown


def test_headlines_tell_the_marked_row():
    text = render_page(example())
    values = re.findall(r'class="value">([^<]+)<', text)
    assert values == ["90.00 %", "89.50 %", "0.7 kB", "97.00 %", "2 of 3"]
    assert "5.7 × smaller" in text
    assert text.count('class="pick') == 1


def test_a_model_that_grew_is_not_called_smaller():
    manifest = Manifest(results=example().results[:1])
    manifest.results.append(ResultRow("PWLQ", 8, 9, 8, 8, size_bytes=8000, top1=90.0))
    text = render_page(manifest)
    assert "2.0 × larger" in text
    assert "smaller" not in text[text.index("<main") : text.index('id="s0"')]


def test_own_headline_replaces_the_computed_one():
    text = render_page(example(), headline=[Headline("Speed", "2 × <faster>", "a & b")])
    assert re.findall(r'class="value">([^<]+)<', text) == ["2 × &lt;faster&gt;"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], None),
        ([("FP32", 32, 90.0, 400)], None),
        ([("FP32", 32, 90.0, 400), ("big", 8, 90.0, 100), ("small", 4, 89.2, 50)], 2),
        ([("FP32", 32, 90.0, 400), ("big", 8, 88.0, 100), ("small", 4, 70.0, 50)], 1),
        ([("FP32", 32, 90.0, 400), ("a", 4, 89.1, 50), ("b", 4, 89.9, 50)], 2),
        ([("a", 8, 80.0, 100), ("b", 4, 79.9, 50)], 0),
    ],
)
def test_featured_row_is_the_smallest_within_a_point_else_the_best(rows, expected):
    results = [ResultRow(n, b, b, b, b, size_bytes=s, top1=t) for n, b, t, s in rows]
    assert featured_row(Manifest(results=results))[0] == expected


def test_the_model_handed_over_is_featured_if_its_widths_are_among_the_rows():
    manifest = example()
    manifest.results[1:1] = [ResultRow("tiny", 2, 2, 8, 8, size_bytes=1, top1=90.0)]
    place, why = featured_row(manifest)
    assert manifest.results[place].method == "net"
    assert "hands over" in why
    assert "tiny, W2A8" in render_page(manifest, row=1)
    with pytest.raises(ValueError, match="row 4 does not exist; the manifest has results 0 to 3"):
        render_page(manifest, row=4)


def test_an_empty_manifest_gives_a_page():
    page = Page(render_page(Manifest()))
    assert "Nothing was recorded." in page.shown()


def test_further_tables_have_sections_of_their_own():
    columns = [Column("File", "File", ["a<b.onnx"], ["a<b.onnx"], numeric=False)]
    page = render_page(Manifest(), tables={"Files": columns})
    assert "<h2>Files</h2>" in page
    assert "a&lt;b.onnx" in page
    assert ">Files</a>" in page


def test_write_page_writes_what_render_page_says(tmp_path):
    path = write_page(tmp_path / "out" / "report.html", example_without_times(), figures())
    assert path.read_text(encoding="utf-8") == render_page(example_without_times(), figures())


def example_without_times() -> Manifest:
    manifest = example()
    for stage in manifest.stages:
        stage.seconds = 0.0
    return manifest


def test_figures_follow_the_readers_theme_but_stand_alone_without_it():
    svg = plots.optimal_breakpoint_figure()
    assert "var(" not in svg
    text = render_page(Manifest(), [Figure("t", svg)])
    assert "var(--fig-blue,#0072b2)" in text
    style = text[text.index("<style>") : text.index("</style>")]
    for name in set(re.findall(r"var\((--[\w-]+)", text)):
        assert style.count(f"{name}:") >= 2, f"{name} lacks a value for light or dark"


def test_style_and_script_ship_with_the_package():
    folder = Path(page_module.__file__).parent
    assert (folder / "page.css").is_file()
    assert (folder / "page.js").is_file()
    assert "</" not in (folder / "page.js").read_text()
