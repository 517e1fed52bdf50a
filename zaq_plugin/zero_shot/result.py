"""What a run of `zero_shot_finetune` gives back, shows on the way, and leaves to be resumed."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from zaq_plugin.files import write_whole
from zaq_plugin.zero_shot.judge import Verdict
from zaq_plugin.zero_shot.reconstruction import BlockResult


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the student holds the best state seen before."""


@dataclass
class FinetuneResult:
    """What happened.

    Attributes:
        verdicts: The judge's history; the first is the calibrated, untrained state.
        best: The state that the student holds now.
        blocks: What reconstruction did, block by block.
        curve: Terms of the loss at every judged step, with ``step``, the judge's divergence and
            agreement, D_f on its images, and ``λ NAME`` for every tap.
        layer_weights: λ by tap at the end: the more, the further student and teacher differ there.
        restarts: Steps at which the generator was restarted.
        seconds: Wall time by stage.
        examples: Some of the synthetic images, (n, C, H, W).
    """

    verdicts: list[Verdict] = field(default_factory=list)
    best: Verdict | None = None
    blocks: list[BlockResult] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    layer_weights: dict[str, float] = field(default_factory=dict)
    restarts: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    examples: Tensor | None = None

    @property
    def start(self) -> Verdict:
        """The untrained state."""
        return self.verdicts[0]

    @property
    def improved(self) -> bool:
        """Whether anything better than the untrained state was found."""
        return self.best is not None and self.best.label != self.start.label


class RunProgress:
    """Shows the stage, the steps, the latest terms and the time left.

    Args:
        active: False shows nothing at all.
        console: Where to; standard error by default. When it is no terminal, one line is printed
            per stage, at its end.
    """

    def __init__(self, active: bool = True, console: Console | None = None) -> None:
        self.active = active
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._since = time.monotonic()
        self._latest = ""

    def __enter__(self) -> RunProgress:
        if self.active and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[terms]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(
        self, stage: str, done: int, total: int, terms: Mapping[str, float] | None = None
    ) -> None:
        """One step of a stage; a new stage name ends the one before."""
        if not self.active:
            return
        if stage != self._stage:
            self._finish()
            self._stage, self._since = stage, time.monotonic()
            if self._bar is not None:
                self._task = self._bar.add_task(stage, total=total, terms="")
        if terms:
            self._latest = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, terms=self._latest)
        self._done, self._total = done, total

    def _finish(self) -> None:
        if self._stage and self.active and self._bar is None:
            seconds = time.monotonic() - self._since
            line = f"{self._stage}: {self._done}/{self._total} in {seconds:.0f} s  {self._latest}"
            self.console.print(line.rstrip(), highlight=False, soft_wrap=True)
        self._stage, self._latest = "", ""


NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write a state (tensors, numbers, strings, lists, dicts) to ``folder/checkpoint.pt``.

    A kill leaves the checkpoint before it.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return write_whole(folder / NAME, buffer.getvalue())


def load_checkpoint(folder: Path, config: str, device: torch.device | str) -> dict[str, Any] | None:
    """Read a folder's checkpoint, or None if there is none.

    Raises:
        ValueError: if it was written with another config, or is no checkpoint.
    """
    path = folder / NAME
    if not path.exists():
        return None
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict) or "config" not in state:
        raise ValueError(f"{path} is no checkpoint of zero-shot fine-tuning; delete it or move it.")
    if json.loads(state["config"]) != json.loads(config):
        changed = _differences(state["config"], config)
        raise ValueError(
            f"{path} belongs to a run with other settings ({changed}); resume with those, or give "
            "another checkpoint folder."
        )
    return state


def _differences(saved: str, present: str) -> str:
    old, new = json.loads(saved), json.loads(present)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name}: {old.get(name)!r}, now {new.get(name)!r}" for name in names)
