"""The manifest: one JSON file with everything a run did, in order.

Reports, resuming and tests read it. It holds no clock time of its own, so that the same seed gives
the same file but for the timings.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zaq_plugin.files import write_whole
from zaq_plugin.report._json import check_keys, dumps, loads_object, plain
from zaq_plugin.report.records import Audit, ResultRow

FORMAT = 1
_PACKAGES = (
    "zaq-plugin",
    "torch",
    "numpy",
    "safetensors",
    "rich",
    "timm",
    "torchao",
    "nncf",
    "onnx",
    "onnxruntime",
    "openvino",
)


def collect_versions() -> dict[str, str]:
    """Versions of Python, the platform and every installed package a result depends on.

    Read from the packages' metadata: nothing is imported for it.
    """
    versions = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@dataclass
class Stage:
    """One step of a run.

    Attributes:
        name: What was done, such as ``calibrate``.
        seconds: How long it took.
        status: ``done``, or ``failed`` with the error's text among the facts.
        facts: Whatever the step wants remembered, as plain JSON values.
    """

    name: str
    seconds: float = 0.0
    status: str = "done"
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Manifest:
    """Everything that a run knows about itself.

    Attributes:
        model: The model's name.
        versions: Package to version, see `collect_versions`.
        seeds: What each seed was used for, to the seed.
        specs: Name to spec, as JSON values.
        layers: The audit of the model that the run hands back.
        audits: Further audits, by the method's name, where a run compares several.
        ranges: Activation ranges, by tap or layer: ``[lo, hi]``.
        timings: Seconds, by stage (repeated stages add up).
        results: The rows of the results table.
        stages: What happened, in order.
        protocol: What holds for all results; see `zaq_plugin.report.protocol.PROTOCOL_KEYS`.

    Lifecycle:
        ``manifest = Manifest.start("resnet20", seeds={"run": 0})``, then for every step
        ``with manifest.stage("calibrate", batches=8) as facts: ...``, then
        ``manifest.save("out/manifest.json")`` as often as one likes.
    """

    model: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    specs: dict[str, Any] = field(default_factory=dict)
    layers: Audit = field(default_factory=Audit)
    audits: dict[str, Audit] = field(default_factory=dict)
    ranges: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    results: list[ResultRow] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, model: str = "", **fields: Any) -> Manifest:
        """A new manifest with the versions of this environment filled in."""
        return cls(model=model, versions=collect_versions(), **fields)

    @contextmanager
    def stage(self, name: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Times a step and records it, also when it fails.

        Yields the stage's facts, a dict to add to: ``with manifest.stage("x") as facts:``.

        Raises:
            TypeError: a fact that JSON cannot hold, named.
        """
        record = Stage(name, facts=plain(facts, f"stage '{name}'"))
        begin = time.perf_counter()
        extra: dict[str, Any] = record.facts
        self.stages.append(record)
        record.status = "running"
        try:
            yield extra
            record.facts = plain(extra, f"stage '{name}'")
            record.status = "done"
        except BaseException as error:
            record.status = "failed"
            record.facts = {k: v for k, v in extra.items() if _is_plain(v)}
            record.facts["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            record.seconds = time.perf_counter() - begin
            self.timings[name] = self.timings.get(name, 0.0) + record.seconds

    def finished(self, name: str) -> bool:
        """Whether a stage of this name is done: what a resumed run asks before repeating it."""
        return any(s.name == name and s.status == "done" for s in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON values; `format` says the layout's version."""
        names = [f.name for f in dataclasses.fields(self)]
        return {"format": FORMAT, **{n: plain(vars(self)[n], f"manifest.{n}") for n in names}}

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_dict`.

        Raises:
            ValueError: an unknown key or a layout that this version does not read.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        check_keys(data, ["format", *names], "Manifest")
        if data.get("format") != FORMAT:
            raise ValueError(
                f"Manifest has format {data.get('format')!r}; this version reads {FORMAT}. "
                "Read it with the version of zaq-plugin named under its 'versions'."
            )
        values = {k: v for k, v in data.items() if k != "format"}
        if "layers" in values:
            values["layers"] = Audit.from_dict(values["layers"])
        if "audits" in values:
            values["audits"] = {k: Audit.from_dict(v) for k, v in values["audits"].items()}
        if "results" in values:
            values["results"] = [ResultRow.from_dict(r) for r in values["results"]]
        if "stages" in values:
            stage_names = [f.name for f in dataclasses.fields(Stage)]
            for entry in values["stages"]:
                check_keys(entry, stage_names, f"Stage {entry.get('name', '?')!r}")
            values["stages"] = [Stage(**entry) for entry in values["stages"]]
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`."""
        return cls.from_dict(loads_object(text, "Manifest"))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the manifest; a crash leaves the old file or the new one, never a part.

        Raises:
            TypeError: a value that JSON cannot hold; the old file stays.
        """
        return write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a manifest; the text names the file.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            return cls.from_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _is_plain(value: Any) -> bool:
    try:
        plain(value)
    except TypeError:
        return False
    return True
