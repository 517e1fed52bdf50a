"""Divergence, agreement and accuracy against their definitions; images as models see them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from zaq_plugin.zero_shot import ImageFormat
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.images import DISTILLED, NOISE, make_images, read_set, smooth_noise
from zaq_timm.zoo.measure import accuracy, distance, outputs, padded
from zaq_timm.zoo.models import Inputs
from zaq_timm.zoo.settings import Settings

RGB = Inputs((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


def test_divergence_and_agreement_are_their_definitions() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(9, 5)), draw.normal(size=(9, 5))
    gap = distance([torch.tensor(a)], [torch.tensor(b)])
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    assert gap.divergence == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert gap.agreement == pytest.approx(100 * (a.argmax(1) == b.argmax(1)).mean())
    assert gap.sqnr_db == pytest.approx(
        10 * math.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-6
    )
    same = distance([torch.tensor(a)], [torch.tensor(a)])
    assert (same.divergence, same.agreement, same.sqnr_db) == (0.0, 100.0, math.inf)


def test_outputs_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outputs are \[\(2, 3\)\], the float's \[\(2, 4\)\]"):
        distance([torch.zeros(2, 4)], [torch.zeros(2, 3)])


def test_models_of_one_batch_size_take_any() -> None:
    class Four(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert len(x) == 4
            return x.mean((2, 3))

    images = torch.randn(11, 3, 4, 4)
    (output,) = outputs(padded(Four(), 4), images, 11)
    torch.testing.assert_close(output, images.mean((2, 3)))


def test_accuracy_counts_images() -> None:
    logits = torch.eye(4)
    float_model = lambda x: x  # noqa: E731
    quantized = lambda x: x.flip(1)  # noqa: E731
    batches = [(logits[:3], torch.tensor([0, 1, 3])), (logits[3:], torch.tensor([0]))]
    scores = accuracy(float_model, quantized, batches)
    assert (scores.float_top1, scores.top1, scores.agreement, scores.images) == (50.0, 25.0, 0.0, 4)
    with pytest.raises(ValueError, match="there is a class 9, but the model knows 4 classes"):
        accuracy(float_model, float_model, [(logits, torch.tensor([0, 1, 2, 9]))])
    with pytest.raises(ValueError, match="measure classifiers"):
        accuracy(float_model, float_model, [(torch.zeros(2, 3, 4), torch.tensor([0, 1]))])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image", reason="images are read by Pillow")
    for name, value in (("0002", 255), ("0000", 0)):
        (tmp_path / name).mkdir()
        for index in range(2):
            pixels = np.full((8, 8, 3), value, np.uint8)
            image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folders_named_by_number_are_those_classes(folder: Path) -> None:
    pytest.importorskip("timm", reason="transforms are timm's")
    data = read_set(str(folder), 1000, 0, 0)
    assert data.labels == [0, 0, 2, 2]
    ((images, labels),) = data.batches(RGB, 8)
    black, white = (
        torch.tensor([(v - m) / s for m, s in zip(RGB.mean, RGB.std, strict=True)]) for v in (0, 1)
    )
    torch.testing.assert_close(images[0], black.view(3, 1, 1).expand(3, 8, 8))
    torch.testing.assert_close(images[3], white.view(3, 1, 1).expand(3, 8, 8))
    assert labels.tolist() == [0, 0, 2, 2]
    assert len(read_set(str(folder), 1000, 3, 0)) == 3


def test_named_folders_count_in_order_if_all_classes_are_there(folder: Path) -> None:
    (folder / "0000").rename(folder / "cat")
    (folder / "0002").rename(folder / "dog")
    assert read_set(str(folder), 2, 0, 0).labels == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="2 class folders and the model 1000 classes"):
        read_set(str(folder), 1000, 0, 0)


def test_an_npz_holds_images_and_labels(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="transforms are timm's")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(5))
    data = read_set(str(tmp_path / "a.npz"), 5, 0, 0)
    images = torch.cat([x for x, _ in data.batches(RGB, 2)])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (RGB.mean, RGB.std))
    expected = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "must hold arrays 'images'"),
        (
            {"images": np.zeros((2, 4, 4, 3), np.float32), "labels": np.zeros(2, int)},
            "must hold uint8 images",
        ),
        (
            {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(3, int)},
            r"got uint8 \(2, 4, 4, 3\) and \(3,\)",
        ),
    ],
)
def test_an_npz_of_something_else(tmp_path: Path, arrays: dict, words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        read_set(str(tmp_path / "a.npz"), None, 0, 0)


def test_paths_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder of class folders nor an npz"):
        read_set(str(tmp_path / "none"), None, 0, 0)
    with pytest.raises(ValueError, match="no images in"):
        read_set(str(tmp_path), None, 0, 0)
    with pytest.raises(ValueError, match=r"a\.npz does not exist"):
        read_set(str(tmp_path / "a.npz"), None, 0, 0)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_bytes(b"no picture")
    data = read_set(str(tmp_path), None, 0, 0)
    pytest.importorskip("timm", reason="transforms are timm's")
    with pytest.raises(LeftOut, match=r"a\.png is no image that can be read"):
        list(data.batches(RGB, 1))


def test_smooth_noise_looks_like_images_to_the_model() -> None:
    images = ImageFormat((3, 32, 32), RGB.mean, RGB.std)
    noise = smooth_noise(16, images, torch.Generator().manual_seed(0))
    pixels = noise * torch.tensor(RGB.std).view(3, 1, 1) + torch.tensor(RGB.mean).view(3, 1, 1)
    assert float(pixels.min()) >= -1e-5
    assert float(pixels.max()) <= 1 + 1e-5
    assert float(pixels.std()) == pytest.approx(0.226, abs=0.04)
    rough, smooth = (x.diff(dim=-1).square().mean() for x in (noise[0::4], noise[3::4]))
    assert float(smooth) < 0.2 * float(rough)


def test_images_that_calibrate_and_images_that_judge_never_meet() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    settings = Settings(test_images=4, distill_steps=2, batch=4)
    calls: list[tuple[str, int, int]] = []
    for kind in (DISTILLED, NOISE):
        calibration = "auto" if kind == DISTILLED else "noise"
        choice = Settings(**{**vars(settings), "calibration": calibration})
        synthetic = make_images(model.eval(), RGB, choice, 8, lambda *a: calls.append(a))
        assert synthetic.kind == kind
        assert (len(synthetic.calibration), len(synthetic.test)) == (8, 4)
        bytes_of = [
            {x.numpy().tobytes() for x in s} for s in (synthetic.calibration, synthetic.test)
        ]
        assert not bytes_of[0] & bytes_of[1]
        assert len(bytes_of[0]) == 8
    assert calls
    assert make_images(nn.Linear(2, 2), RGB, settings, 4, print).kind == NOISE
