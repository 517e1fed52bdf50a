"""The plan of a run: what will be done, what is done already, and what it will be done with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zaq_timm.zoo.light import format_in_words
from zaq_timm.zoo.normalisation import in_words
from zaq_timm.zoo.places import check_places
from zaq_timm.zoo.pool import Task
from zaq_timm.zoo.references import Reference, check_module, find_references
from zaq_timm.zoo.settings import Settings

WORK = "zaq_timm.zoo.job:run_job"


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        settings: of the run.
        references: its models, in order.
    """

    settings: Settings
    references: tuple[Reference, ...]

    @classmethod
    def make(cls, settings: Settings) -> Plan:
        """The plan; see `find_references` and `check_places` for the errors."""
        check_places(settings)
        references = tuple(find_references(settings))
        for reference in references:
            if reference.is_function:
                check_module(reference.name)
        return cls(settings, references)

    @property
    def keys(self) -> list[str]:
        """The models' keys, in order."""
        return [reference.key for reference in self.references]

    @property
    def shared(self) -> dict[str, Any]:
        """What all results in the folder must have in common."""
        return self.settings.shared

    def task(self, key: str, folder: Path) -> Task:
        """The job of one model, to be done in a folder."""
        reference = next(r for r in self.references if r.key == key)
        payload = {
            "reference": reference.to_dict(),
            "settings": asdict(self.settings),
            "batch": self.settings.batch,
        }
        return Task(key, WORK, payload, folder, self.settings.ranks)

    def _host(self) -> str:
        """Who quantizes, in words."""
        if self.settings.simulates:
            return "simulated"
        host = self.settings.wanted_host
        return "PT2E, or FX where that fails" if host == "auto" else host

    def lines(self, done: Mapping[str, Any], todo: list[str]) -> list[str]:
        """The plan in words, for ``--dry-run``."""
        settings = self.settings
        lines = [
            f"weights      {format_in_words(settings.weights)}"
            + (f", widths by --budget {settings.budget}" if settings.budget else ""),
            f"activations  {settings.activations} bits, ranges from {settings.calibration_images} "
            "synthetic images",
            f"images       {settings.input_size or 'of the size that the model says'}; "
            + in_words(settings, not any(r.is_function for r in self.references)),
            f"host         {self._host()}",
            f"zero-shot    {settings.zero_shot}",
            *([f"strategy     {settings.strategy}"] if settings.strategy else []),
            f"measured on  {settings.eval or f'{settings.test_images} synthetic images'}",
            f"export       {settings.export}",
            f"workers      {settings.jobs}, {settings.threads} thread(s) each, memory "
            f"{settings.memory or 'unlimited'}, time {settings.timeout or 'unlimited'}"
            + (f", spread by {settings.cluster}" if settings.cluster else ""),
            f"results      {settings.out}",
            "",
            f"{len(self.references)} model(s), {len(todo)} to do",
        ]
        for reference in self.references:
            row = done.get(reference.key)
            state = "to do" if reference.key in todo else row["status"] if row else "to do"
            again = ", again" if row is not None and reference.key in todo else ""
            weights = f", weights from {reference.checkpoint}" if reference.checkpoint else ""
            lines.append(f"  {reference.name}: {state}{again}{weights}")
        return lines
