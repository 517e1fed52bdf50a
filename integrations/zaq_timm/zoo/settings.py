"""`Settings`: everything that `zaq-quantize run` can be told, the same on the command line and in
a settings file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from zaq_timm.zoo.light import check_format, core_file, did_you_mean, formats
from zaq_timm.zoo.quantities import (
    input_shape,
    parse_budget,
    per_channel,
    seconds_of,
    size_in_bytes,
)

if TYPE_CHECKING:  # torch is loaded when it is needed, not to read a command line
    from zaq_plugin.strategies import Strategy

PRESETS = ("fast", "default", "paper")
CALIBRATION_IMAGES: int = core_file("image_counts").CALIBRATION_IMAGES
HOSTS = ("auto", *sorted({point.name for point in entry_points(group="zaq.hosts")}))
EXPORTS = ("onnx", "pte", "tflite", "pt2")
DEVICE_HOSTS = {"pte": "executorch", "tflite": "litert"}
"""Kinds of files for devices, and the host whose int8 graph each holds."""
RETRIES = ("killed", "failed", "none")


def option(default: Any, text: str, metavar: str = "", *, same: bool = False, **more: Any) -> Any:
    """A field with what its flag needs: help, metavar, choices.

    Args:
        default: the value that it has when nobody says anything.
        text: help.
        metavar: the placeholder in the help.
        same: whether all results in a folder must share the value.
        **more: ``choices``.
    """
    return field(default=default, metadata={"help": text, "metavar": metavar, "same": same, **more})


@dataclass(frozen=True)
class Settings:
    """Settings of one run over a zoo; a misspelt or senseless one is an error.

    The fields' help texts say what each means; they are the flags' help, too.

    Raises:
        ValueError: a value that makes no sense.
        TypeError: a value of another type.
    """

    models: tuple[str, ...] = option(
        (), "names, wildcards, package.module:function, or file.py:function"
    )
    exclude: tuple[str, ...] = option((), "wildcards of models to leave out", "PATTERN")
    checkpoint: str = option("", "weights of --model: safetensors, or a torch file", "FILE")
    model: str = option("", "the model that --checkpoint belongs to", "NAME")
    num_classes: int = option(0, "classes of the model; 0 for its own", "N", same=True)
    pretrained: bool = option(False, "weights from timm's hub, else random ones", same=True)

    weights: str = option(
        "pwlq4",
        f"format and MAC bits of weights: {', '.join(formats())} (uniform has the clip of least "
        "squared error, minmax the whole range, pot powers of two, codebook free levels at stored "
        "bits)",
        "FORMAT",
        same=True,
    )
    activations: int = option(
        8, "bits of layers' inputs, 2 to 8; the model's own input keeps 8", "N", same=True
    )
    depthwise: str = option(
        "int8",
        "int8 keeps depthwise layers at 8 bits where narrow codes and their levels take more room; "
        "as-told does not",
        choices=("int8", "as-told"),
        same=True,
    )
    host: str = option(
        "auto",
        "who quantizes and converts; auto is PT2E, or FX where that fails; with a strategy it "
        "simulates, or, for export=pt2, PT2E or FX",
        choices=HOSTS,
        same=True,
    )
    strategy: str = option(
        "",
        "quantize by a published method, in the host (auto: simulated): rq, omse, lbq, aciq, dfq, "
        "zeroq, pwlq, gptq, adaround, brecq, qdrop, gdfq, zaq, ..., or several (pwlq+gptq); "
        "weights says levels and bits",
        "NAME",
        same=True,
    )
    zero_shot: str = option(
        "none",
        "fine-tune without data: fast, default or paper",
        choices=("none", *PRESETS),
        same=True,
    )
    sensitivity: bool = option(
        False, "measure each layer's divergence when it alone is quantized", same=True
    )
    budget: str = option(
        "",
        "mixed precision: widths by sensitivity, within a mean of stored bits a weight (4.5bits) "
        "or a size of all weights (1.2MB)",
        "BUDGET",
        same=True,
    )
    export: str = option(
        "none",
        "also write the model: onnx, pte (ExecuTorch), tflite (LiteRT), pt2 (hosts only), or "
        "several (onnx,pte)",
        "FORMATS",
        same=True,
    )

    eval: str = option(
        "", "images to measure on: a folder of class folders, or an npz", "PATH", same=True
    )
    eval_images: int = option(0, "measure on so many of them; 0 for all", "N", same=True)
    calibration: str = option(
        "auto",
        "synthetic images for ranges and biases: distilled from BatchNorm statistics, or smooth "
        "noise; auto is distilled where there are BatchNorms",
        choices=("auto", "distilled", "noise"),
        same=True,
    )
    calibration_images: int = option(CALIBRATION_IMAGES, "how many of them", "N", same=True)
    test_images: int = option(
        32, "further synthetic images, for divergence and agreement", "N", same=True
    )
    distill_steps: int = option(30, "optimizer steps on each distilled batch", "N", same=True)
    input_size: str = option("", "CxHxW; the model's own by default", "SIZE", same=True)
    mean: str = option(
        "",
        "of pixels from 0 to 1, a number or one a channel (0.5, or 0.49,0.46,0.41), that the model "
        "was trained with; the model's own by default",
        "NUMBERS",
        same=True,
    )
    std: str = option("", "their deviation, likewise", "NUMBERS", same=True)
    batch: int = option(32, "images at a time; halves when memory runs out", "N", same=True)
    seed: int = option(0, "of everything drawn", "N", same=True)

    out: str = option("zoo", "folder of the results", "FOLDER")
    jobs: int = option(1, "models at the same time", "N")
    threads: int = option(1, "threads of each", "N")
    memory: str = option("", "memory limit of each, such as 4GB; none by default", "SIZE")
    timeout: str = option("", "time limit of each, such as 30m or 2h; none by default", "TIME")
    ranks: int = option(
        1, "processes that share one model's zero-shot training (torchrun)", "N", same=True
    )
    cluster: str = option("", "ray, or ray:ADDRESS: spread models over a Ray cluster", "CLUSTER")
    retry: str = option(
        "killed",
        "which unfinished models a resumed run does again: those killed from outside, all failed "
        "ones, or none",
        choices=RETRIES,
    )
    restart: bool = option(False, "delete the folder's results and begin anew")
    dry_run: bool = option(False, "print the plan and stop, before any model is loaded")
    quiet: bool = option(False, "no progress")
    json: bool = option(False, "print the rows as JSON lines instead of a table")

    def __post_init__(self) -> None:
        told = vars(self)
        for item in fields(self):
            value, choices = told[item.name], item.metadata.get("choices")
            _check_type(item.name, value, item.default)
            if choices and value not in choices:
                raise ValueError(f"{item.name} must be one of {', '.join(choices)}; got {value!r}.")
        for name in ("models", "exclude"):
            object.__setattr__(self, name, tuple(told[name]))
        for name in ("batch", "jobs", "threads", "ranks", "calibration_images", "distill_steps"):
            _at_least(name, told[name], 1)
        _at_least("test_images", self.test_images, 2)
        for name in ("seed", "num_classes", "eval_images"):
            _at_least(name, told[name], 0)
        if not 2 <= self.activations <= 8:
            raise ValueError(f"activations must have 2 to 8 bits; got {self.activations}.")
        check_format(self.weights)
        self._check_exports()
        parse_budget(self.budget)
        size_in_bytes("memory", self.memory)
        seconds_of("timeout", self.timeout)
        self._check_images()
        if self.cluster and self.cluster.split(":", 1)[0] != "ray":
            raise ValueError(f"cluster must be ray or ray:ADDRESS; got {self.cluster!r}.")
        self._check_together()

    def _check_images(self) -> None:
        shape = input_shape(self.input_size)
        for name, text in (("mean", self.mean), ("std", self.std)):
            count = len(per_channel(name, text) or (0,))
            if shape and count not in (1, shape[0]):
                raise ValueError(
                    f"{name} has {count} numbers, and images of input_size={self.input_size} have "
                    f"{shape[0]} channel(s); give one number, or {shape[0]}."
                )

    def _check_together(self) -> None:
        if self.checkpoint and not self.model:
            known = self.models[0] if len(self.models) == 1 else "NAME"
            raise ValueError(
                "checkpoint needs model: which architecture the weights belong to. Type --model "
                f"{known} --checkpoint {self.checkpoint}."
            )
        if self.model and not self.checkpoint:
            raise ValueError(
                "model names the architecture of a checkpoint, and there is none; pass the name "
                "itself as an argument, or add checkpoint."
            )
        if self.ranks > 1 and self.zero_shot == "none":
            raise ValueError(
                f"ranks={self.ranks} shares zero-shot training among processes, and none was asked "
                "for; add zero_shot, or use jobs for several models at a time."
            )
        if self.strategy:
            self._check_strategy()
        if self.budget and self.weights.startswith("minmax"):
            raise ValueError(
                "budget chooses among widths by squared error; use weights=pwlqN or uniformN."
            )

    def _check_strategy(self) -> None:
        if self.zero_shot != "none":
            raise ValueError(
                "strategy does not go with zero_shot: strategy=zaq does that; leave one away."
            )
        self.checked_strategy()

    def checked_strategy(self) -> Strategy:
        """The strategy that is named.

        Raises:
            ValueError: there is none of that name, or a run cannot do it.
        """
        from zaq_timm.zoo.strategy_checks import check_strategy

        return check_strategy(self.strategy, self.wanted_host, self.export_kinds, self.budget)

    def _check_exports(self) -> None:
        kinds = self.export.split(",")
        wrong = [k for k in kinds if k not in EXPORTS and self.export != "none"]
        if wrong or len(set(kinds)) < len(kinds):
            raise ValueError(
                f"export must be none, {', '.join(EXPORTS)}, or several of these joined by commas; "
                f"got {self.export!r}."
            )
        if self._device_hosts() and self.activations != 8:
            raise ValueError(
                f"export={self.export}: kernels of devices multiply int8 by int8; use "
                f"activations=8, not {self.activations}."
            )

    def _device_hosts(self) -> list[str]:
        return [DEVICE_HOSTS[kind] for kind in self.export_kinds if kind in DEVICE_HOSTS]

    @property
    def export_kinds(self) -> tuple[str, ...]:
        """The kinds of files to write."""
        return () if self.export == "none" else tuple(self.export.split(","))

    @property
    def wanted_host(self) -> str:
        """The host; under ``auto`` that of a device, if there is a file for one to write."""
        hosts = self._device_hosts()
        return hosts[0] if hosts and self.host == "auto" else self.host

    @property
    def simulates(self) -> bool:
        """Whether ``auto`` means simulation, whose student exports to ONNX as integers.

        So it does for a strategy, unless the export needs a host's converted model.
        """
        return bool(self.strategy) and self.wanted_host == "auto" and "pt2" not in self.export_kinds

    @property
    def shared(self) -> dict[str, Any]:
        """What all results in a folder must have in common."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(self) if f.metadata.get("same")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from names and values, as a settings file holds them.

        Raises:
            ValueError: an unknown name, or a value that makes no sense.
        """
        check_names(values)
        return cls(**values)


def check_names(values: Mapping[str, Any]) -> None:
    """Refuses a name that is no setting.

    Raises:
        ValueError: names it, and the one that may have been meant.
    """
    names = [f.name for f in fields(Settings)]
    for name in values:
        if name not in names:
            hint = did_you_mean(name, names)
            raise ValueError(f"no setting {name!r}.{hint} Known are {', '.join(names)}.")


def _check_type(name: str, value: Any, default: Any) -> None:
    kind = str if default is MISSING else type(default)
    if kind is tuple:
        if isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise TypeError(f"{name} must be a list of texts; got {value!r}.")
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {str: "a text", int: "a whole number", bool: "true or false"}[kind]
        raise TypeError(f"{name} must be {words}; got {value!r}.")


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value}.")
