"""SIGKILL at random moments, to the run and to workers: nothing is lost, nothing is doubled."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="finds workers through /proc, which is Linux's"
)
SCRIPT = Path(__file__).with_name("zoo_fake_work.py")
MODELS, JOBS, KILLS = 8, 2, 20


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(out), str(MODELS), str(JOBS)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def finish(out: Path) -> None:
    process = start(out)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()


def rows(out: Path) -> list[dict]:
    lines = (out / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def results(out: Path) -> dict[str, object]:
    """All that a run decides: rows without what was timed, and files."""
    by_name: dict[str, object] = {}
    for row in rows(out):
        assert row["key"] not in by_name, "a row is doubled"
        measured = row.pop("measured")
        assert measured["attempts"] in (1, 2)
        by_name[row["key"]] = row
        for path in sorted((out / "models" / row["key"]).iterdir()):
            if path.name not in ("row.json", "log.txt"):
                by_name[f"{row['key']}/{path.name}"] = path.read_text()
    return by_name


def workers_of(parent: int) -> list[int]:
    ids = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if int((place / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                ids.append(int(place.name))
        except (OSError, IndexError):
            continue
    return ids


def alive(out: Path) -> list[str]:
    """Processes whose command line names the folder."""
    commands = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().decode(errors="replace")
            state = (place / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(out) in command and state != "Z":
            commands.append(command)
    return commands


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_killed_at_random_moments_twenty_times_the_results_are_those_of_a_quiet_run(
    tmp_path: Path,
) -> None:
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    begin = time.monotonic()
    finish(quiet)
    length = time.monotonic() - begin
    draw = random.Random(0)
    of_run = of_worker = 0
    while of_run + of_worker < KILLS:
        process = start(killed)
        time.sleep(draw.uniform(0.1, length))
        workers = workers_of(process.pid)
        if draw.random() < 0.5 and workers:
            kill(draw.choice(workers))
            of_worker += 1
            time.sleep(draw.uniform(0.0, 0.2))
        kill(process.pid)
        of_run += 1
        process.communicate()
        if (killed / "results.jsonl").is_file():
            rows(killed)  # whole lines at any moment
            if len(rows(killed)) == MODELS and of_run + of_worker < KILLS:
                (killed / "results.jsonl").unlink()  # begin again: there are kills left
                for place in (killed / "models").iterdir():
                    subprocess.run(["rm", "-r", str(place)], check=True)
    assert of_worker >= 3
    finish(killed)
    assert results(killed) == results(quiet)
    assert len(rows(killed)) == MODELS
    assert not list((killed / "models").glob(".tmp-*"))
    deadline = time.monotonic() + 10
    while alive(killed) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(killed) == [], "workers outlived their run"


def test_a_killed_run_is_gone_with_all_its_workers_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (
        (out / "results.jsonl").is_file() and workers_of(process.pid)
    ):
        time.sleep(0.01)
    kill(process.pid)
    process.communicate()
    done = len(rows(out))
    assert 1 <= done < MODELS
    finish(out)
    assert [row["status"] for row in rows(out)] == ["done"] * MODELS
    assert len({row["key"] for row in rows(out)}) == MODELS


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (out / "results.jsonl").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in error or process.returncode == 0
    assert rows(out)
    finish(out)
    assert {row["status"] for row in rows(out)} == {"done"}
