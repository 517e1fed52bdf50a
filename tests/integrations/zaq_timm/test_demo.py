"""The demo: what it measures is what the models in its folder do."""

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.report import Manifest
from zaq_timm.checkpoint import load_checkpoint
from zaq_timm.demo import CONVERTED_WIDTHS, KEPT, STEPS, DemoRun, run_demo
from zaq_timm.demo_files import file_columns
from zaq_timm.digits import load_digits_split, separable_model
from zaq_timm.formats import FORMATS, WIDTHS, compared
from zaq_timm.hosts import CONVERTED

LAYERS = 30
pytestmark = pytest.mark.slow  # one run of the demo, about 20 s, serves them all


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> DemoRun:
    return run_demo(tmp_path_factory.mktemp("demo") / "made" / "here", step=steps.append)


def row(run: DemoRun, method: str, weights: int, activations: int) -> dict:
    (entry,) = (
        r.to_dict()
        for r in run.manifest.results
        if (r.method, r.weight_mac_bits, r.activation_mac_bits) == (method, weights, activations)
    )
    return entry


def test_every_format_is_measured_at_every_width(run: DemoRun, steps: list[str]) -> None:
    # A uniform grid of 9 bits does not exist; 4 bits per tensor are one more's equal, too.
    count = len(FORMATS) * len(WIDTHS) + len(WIDTHS) - 1 - 1
    assert len(compared()) == count
    count += len(CONVERTED_WIDTHS)
    count += 2  # W4A4 without data, before and after fine-tuning
    assert len(run.manifest.results) == 1 + count
    assert len(steps) == STEPS
    assert len(run.manifest.audits) == count
    for audit in run.manifest.audits.values():
        assert len(audit.quantized) == LAYERS
        assert not audit.skipped


@torch.no_grad()
def test_the_float_row_is_the_untouched_network(run: DemoRun) -> None:
    split = load_digits_split()
    right = int((separable_model()(split.test_images).argmax(1) == split.test_labels).sum())
    float_row = row(run, "FP32", 32, 32)
    assert float_row["top1"] == pytest.approx(100 * right / 599, abs=1e-9)
    assert float_row["top1"] >= 98


@torch.no_grad()
def test_the_checkpoint_does_what_its_row_says(run: DemoRun) -> None:
    split = load_digits_split()
    top = load_checkpoint(run.out)(split.test_images).argmax(1)
    entry = row(run, *KEPT)
    assert entry["top1"] == pytest.approx(100 * int((top == split.test_labels).sum()) / 599)
    float_top = separable_model()(split.test_images).argmax(1)
    assert entry["agreement"] == pytest.approx(100 * int((top == float_top).sum()) / 599)


def test_stored_bits_and_size_are_told_for_what_they_are(run: DemoRun) -> None:
    weights = sum(p.numel() for n, p in run.model.named_parameters() if n.endswith("weight"))
    for width in WIDTHS:
        for form in FORMATS:
            entry = row(run, width.named(form.name), width.weights, width.activations)
            extra = 1 if form.name == "PWLQ" else 0
            assert entry["weight_stored_bits"] == width.weights + extra
            codes = weights * entry["weight_stored_bits"] / 8
            assert entry["size_bytes"] > codes


def test_pwlq_is_nearer_to_the_weights_than_uniform_of_the_same_multiplier(run: DemoRun) -> None:
    for width in WIDTHS:
        bits = width.weights, width.activations
        noise = {f.name: row(run, width.named(f.name), *bits)["sqnr_db"] for f in FORMATS}
        assert all(math.isfinite(value) for value in noise.values())
        assert noise["PWLQ"] > noise["uniform, best clip"] >= noise["uniform, min-max"] - 0.01


def test_fine_tuning_without_data_mends_what_it_is_given(run: DemoRun) -> None:
    before = row(run, "uniform, best clip, per tensor, data-free", 4, 4)
    after = row(run, "uniform, best clip, per tensor, data-free, zero-shot", 4, 4)
    assert after["top1"] >= before["top1"] + 1
    assert after["top1"] >= 95
    assert after["size_bytes"] == before["size_bytes"]
    assert "none" in after["protocol"]["calibration"]
    titles = ["Images nobody took", "Teacher and student", "Where they differ"]
    assert [figure.title for figure in run.figures] == titles


def test_every_pwlq_row_has_a_uniform_row_of_equal_stored_bits(run: DemoRun) -> None:
    names = ("PWLQ", "PWLQ, per tensor")
    rows = [r for r in run.manifest.results if r.method in names and r.weight_stored_bits <= 8]
    assert len(rows) == len(WIDTHS) - 1
    for pwlq in rows:
        uniform = pwlq.method.replace("PWLQ", "uniform, best clip")
        (equal,) = (
            r.to_dict()
            for r in run.manifest.results
            if r.method == uniform
            and r.weight_mac_bits == pwlq.weight_stored_bits
            and r.activation_mac_bits == pwlq.activation_mac_bits
        )
        assert equal["weight_stored_bits"] == pwlq.weight_stored_bits


def test_the_converted_network_has_the_simulations_levels(run: DemoRun) -> None:
    for weights, activations in CONVERTED_WIDTHS:
        converted = row(run, "PWLQ, converted (fx)", weights, activations)
        simulated = row(run, "PWLQ", weights, activations)
        assert converted["sqnr_db"] == simulated["sqnr_db"]
        assert converted["size_bytes"] == simulated["size_bytes"]
        assert converted["top1"] == pytest.approx(simulated["top1"], abs=1.0)
    audit = run.manifest.audits["PWLQ, converted (fx), W4A8"]
    assert len(audit.quantized) == LAYERS
    assert all((record.kernel or "").startswith("int8 ") for record in audit.quantized)


@torch.no_grad()
def test_pt2e_converts_the_network(run: DemoRun) -> None:
    converted = CONVERTED["pt2e"](run.model, PWLQSpec(bits=4), 8, run.batches)
    assert len(converted.layers.quantized) == LAYERS
    top = converted.model(run.split.test_images).argmax(1)
    assert float((top == run.top).float().mean()) > 0.99
    tensors = run.kept.tensors
    for name, tensor in converted.tensors.items():
        assert torch.equal(tensor.codes, tensors[name].codes)


def test_sqnr_is_that_of_the_weights(run: DemoRun) -> None:
    flat, error = [], []
    for name, tensor in run.kept.tensors.items():
        weight = run.model.get_submodule(name).weight.detach().double()
        flat.append(weight.flatten())
        error.append((tensor.dequantize().double() - weight).flatten())
    expected = 20 * torch.log10(torch.cat(flat).norm() / torch.cat(error).norm()).item()
    assert row(run, *KEPT)["sqnr_db"] == pytest.approx(expected, abs=1e-6)


def test_calibration_uses_training_images_alone(run: DemoRun) -> None:
    split = load_digits_split()

    def contents(images: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    used = contents(torch.cat(run.batches))
    assert len(used) == 512
    assert used <= contents(split.train_images)
    assert not used & contents(split.test_images)


def test_the_manifest_on_disk_is_the_runs(run: DemoRun) -> None:
    manifest = Manifest.load(run.out / "manifest.json")
    assert manifest.results == run.manifest.results
    assert manifest.layers["linear"].spec == run.kept.tensors["linear"].spec.label
    assert manifest.ranges.keys() == run.kept.tensors.keys()
    assert manifest.seeds == {"calibration images": 0}
    assert all(stage.status == "done" for stage in manifest.stages)


def test_the_page_is_self_contained_and_has_its_pictures(run: DemoRun) -> None:
    page = (run.out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert page.count("data:image/png;base64,") == 1
    assert 'src="http' not in page
    assert 'href="http' not in page
    for text in ("Accuracy over stored bits", "Error over the breakpoint", "PWLQ", "98.66"):
        assert text in page


def test_the_page_tells_the_file_that_runtimes_take(run: DemoRun) -> None:
    page = (run.out / "report.html").read_text(encoding="utf-8")
    assert "digits.onnx" in page
    columns = {c.title: c.cells for c in file_columns(run.shipped, [])}
    size = (run.out / "digits.onnx").stat().st_size
    assert columns["kB"] == [f"{size / 1000:.1f}"]
    assert columns["int8 layers"] == [str(LAYERS)]
    assert "Top-1 (%)" not in columns
    pte = {"file": "model.pte", "bytes": 3000, "zipped bytes": 2000, "packed bytes": 1500,
           "integer layers": 30, "runtime": "ExecuTorch", "top-1": 98.5}  # fmt: skip
    columns = {c.title: c.cells for c in file_columns(run.shipped, [pte])}
    assert [cells[1] for cells in columns.values()] == [
        "model.pte", "3.0", "2.0", "1.5", "30", "98.50", "ExecuTorch",
    ]  # fmt: skip
    assert columns["Top-1 (%)"][0] == "–"


def test_a_seed_fixes_the_run(run: DemoRun, tmp_path: Path) -> None:
    def facts(folder: Path) -> list[tuple[object, ...]]:
        rows = Manifest.load(folder / "manifest.json").results
        return [(r.method, r.size_bytes, r.sqnr_db, r.top1, r.agreement) for r in rows]

    run_demo(tmp_path / "again")
    run_demo(tmp_path / "other", seed=1)
    assert facts(tmp_path / "again") == facts(run.out)
    again, first, other = map(contents, (tmp_path / "again", run.out, tmp_path / "other"))
    assert again == first
    assert other != first


def contents(folder: Path) -> dict[str, object]:
    """Both files of the checkpoint, read; safetensors orders its metadata at random."""
    content: dict[str, object] = {}
    for name in ("quantized.safetensors", "rest.safetensors"):
        with safe_open(folder / name, framework="np") as file:
            content[name] = file.metadata()
            for key in file.keys():  # noqa: SIM118
                content[key] = file.get_tensor(key).tobytes()
    return content
