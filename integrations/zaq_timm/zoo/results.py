"""The results' folder: one JSON line a model, and a folder with the details of each.

    OUT/settings.json     what all results have in common
    OUT/results.jsonl     one line a model, in the order in which they ended
    OUT/models/KEY/       row.json (the same line), details, images, exported files, log.txt

Every file is whole or not there. A model's folder takes its name in one step, and then its line is
written; a run that dies in between finds the folder again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zaq_timm.zoo.errors import DONE, KILLED, STATUSES, RunError
from zaq_timm.zoo.light import cannot_write, write_json, write_whole
from zaq_timm.zoo.worker import ROW

SETTINGS, LINES, MODELS, LOCK = "settings.json", "results.jsonl", "models", ".lock"
_TEMPORARY = ".tmp-"


class Results:
    """Rows of one folder, by key. Open it with `open`; one process at a time writes.

    Attributes:
        folder: where they are.
        rows: key to row, in the order in which they ended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, dict[str, Any]] = {}
        self._lock: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Reads a folder to look at it; nothing is changed.

        Raises:
            RunError: there are no results, or a line is damaged.
        """
        results = cls(folder)
        if not (folder / SETTINGS).is_file():
            raise RunError(
                f"{folder} holds no results of zaq-quantize run ({SETTINGS} is missing); name the "
                "folder that was its --out."
            )
        results._read_lines()
        return results

    @property
    def settings(self) -> dict[str, Any]:
        """What the results have in common."""
        path = self.folder / SETTINGS
        try:
            common: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(
                f"{path} is damaged ({error}); with --restart the folder's results are deleted and "
                "begun anew."
            ) from error
        return common

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, shared: Mapping[str, Any], restart: bool) -> Iterator[Results]:
        """Opens a folder for writing, new or with results of the same settings.

        Args:
            folder: made if it does not exist.
            shared: what all results have in common.
            restart: delete what is there.

        Raises:
            RunError: another run writes there, settings differ, a line is damaged, or the folder
                cannot be written to.
        """
        results = cls(folder)
        try:
            (folder / MODELS).mkdir(parents=True, exist_ok=True)
            results._take_lock()
        except OSError as error:
            raise RunError(
                f"cannot write to {folder}: {error.strerror or error}; give another --out."
            ) from error
        try:
            results._begin(shared, restart)
            yield results
        except OSError as error:
            raise cannot_write(folder, error) from error
        finally:
            results._release()

    def _begin(self, shared: Mapping[str, Any], restart: bool) -> None:
        for left in (self.folder / MODELS).glob(f"{_TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        if restart:
            for name in (SETTINGS, LINES):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / MODELS)
            (self.folder / MODELS).mkdir()
        if (self.folder / SETTINGS).is_file():
            refuse_changes(self.folder, self.settings, shared)
        else:
            write_json(self.folder / SETTINGS, dict(shared))
        self._read_lines()
        self._adopt()

    def _take_lock(self) -> None:
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # no locks on this system
        except BlockingIOError as error:
            os.close(descriptor)
            raise RunError(
                f"another run is writing to {self.folder}; wait for it, or give another --out."
            ) from error
        self._lock = descriptor

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read_lines(self) -> None:
        path = self.folder / LINES
        if not path.is_file():
            return
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            row = _parsed(line)
            if row is None or row["key"] in self.rows:
                what = "is no result" if row is None else f"repeats {row['key']!r}"
                raise RunError(
                    f"line {number} of {path} {what}; delete that line, and the next run does "
                    "the model again."
                )
            self.rows[row["key"]] = row

    def _adopt(self) -> None:
        """Rows of folders that were finished by a run that died before it wrote their lines."""
        for place in sorted((self.folder / MODELS).iterdir()):
            with contextlib.suppress(OSError):
                row = _parsed((place / ROW).read_text(encoding="utf-8"))
                if row is None or row["key"] != place.name or self.rows.get(place.name) == row:
                    continue
                self.rows[place.name] = row
                self._write()

    def unfinished(self, keys: list[str], retry: str) -> list[str]:
        """Which keys a run has yet to do; see the setting ``retry``."""
        again = {"killed": {KILLED}, "failed": set(STATUSES) - {DONE}, "none": set()}[retry]
        return [key for key in keys if key not in self.rows or (self.rows[key]["status"] in again)]

    def workplace(self, key: str) -> Path:
        """An empty folder for a model's files, beside where they will be."""
        return Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{key}-", dir=self.folder / MODELS))

    def add(self, row: dict[str, Any], workplace: Path | None) -> None:
        """Takes a model's row and files; on disk before this returns.

        Raises:
            RunError: they cannot be written.
        """
        place = self.folder / MODELS / row["key"]
        try:
            if workplace is not None:
                write_json(workplace / ROW, row)
                for left in ("job.json",):
                    (workplace / left).unlink(missing_ok=True)
                if place.exists():
                    shutil.rmtree(place)
                os.chmod(workplace, 0o755)
                os.replace(workplace, place)
            self.rows.pop(row["key"], None)
            self.rows[row["key"]] = row
            self._write()
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def _write(self) -> None:
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in self.rows.values())
        write_whole(self.folder / LINES, "".join(line + "\n" for line in lines))

    def detail(self, key: str, name: str) -> Any:
        """One of a model's JSON files; None where it has none."""
        path = self.folder / MODELS / key / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("key"), str)
    return row if whole and row.get("status") in STATUSES else None


def refuse_changes(folder: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises RunError if a folder's results were made with other settings; shows the difference."""
    differences = [
        f"  {name}: {_shown(there, name)} there, {_shown(now, name)} now"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    ]
    if differences:
        raise RunError(
            f"{folder} holds results of other settings:\n"
            + "\n".join(differences)
            + "\nGive another --out, or --restart to delete them."
        )


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "not set"
