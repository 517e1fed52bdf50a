"""Paths that a run names, looked at before anything is loaded or made."""

from __future__ import annotations

import zipfile
from pathlib import Path

from zaq_timm.zoo.settings import Settings

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
"""Of the images in class folders."""
ARRAYS = ("images.npy", "labels.npy")


def check_places(settings: Settings) -> None:
    """Refuse what a run could not read or write, while nothing has been made.

    Raises:
        ValueError: The evaluation images are not there, or the results' folder is a file.
    """
    if settings.eval:
        check_evaluation(settings.eval)
    out = Path(settings.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {settings.out} is a file; name a folder.")


def check_evaluation(text: str) -> None:
    """Refuse a path without evaluation images; no image is read.

    Raises:
        ValueError: with what was expected.
    """
    path = Path(text).expanduser()
    if not path.exists():
        raise ValueError(
            f"eval: {text} does not exist; neither a folder of class folders nor an npz is there."
        )
    if path.suffix == ".npz" and path.is_file():
        _check_arrays(path, text)
    elif path.is_dir():
        check_folder(path)
    else:
        raise ValueError(f"eval: {text} is neither a folder of class folders nor an npz.")


def check_folder(place: Path) -> None:
    """Refuse a folder without images in folders.

    Raises:
        ValueError: with what was expected.
    """
    folders = (entry for entry in place.iterdir() if entry.is_dir())
    if not any(p.suffix.lower() in ENDINGS for folder in folders for p in folder.rglob("*")):
        raise ValueError(
            f"eval: no images in {place}; expected a folder for each class with images in it "
            f"({', '.join(ENDINGS)})."
        )


def _check_arrays(path: Path, text: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            held = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"eval: {text} is no whole npz ({error}).") from error
    absent = [name for name in ARRAYS if name not in held]
    if absent:
        raise ValueError(
            f"eval: {text} must hold arrays 'images' (uint8) and 'labels' (whole numbers); it "
            f"holds {', '.join(name.removesuffix('.npy') for name in held) or 'nothing'}."
        )
