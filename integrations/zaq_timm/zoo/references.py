"""Which models a run is about: names and wildcards, a checkpoint, or a function that makes one.

timm's names are read from its sources: importing timm, and torch with it, takes seconds.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch, fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zaq_timm.zoo.light import did_you_mean
from zaq_timm.zoo.settings import Settings

_REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@cache
def registered_names() -> frozenset[str]:
    """The models that timm registers, without deprecated names; empty where timm is missing."""
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset()
    return frozenset(_names_in(Path(spec.origin).parent / "models"))


def _names_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        yield from _REGISTERED.findall(path.read_text(encoding="utf-8"))


def matching(pattern: str) -> list[str]:
    """The names that a wildcard matches, in the order of ``timm.list_models``."""
    return sorted((name for name in registered_names() if fnmatch(name, pattern)), key=_natural)


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Endings of files of weights."""
_MADE = "it is already what a run makes; name the model that it was made of"
FILES = {
    ".onnx": f"{_MADE} (inspect, compare and verify take the file)",
    ".pte": _MADE,
    ".tflite": _MADE,
    ".zaq": "unpack it first",
    ".toml": "settings are read by --settings FILE; name a model in it",
    ".yaml": "settings are read by --settings FILE; name a model in it",
    ".yml": "settings are read by --settings FILE; name a model in it",
}
"""Endings of other files that users type in a model's place, and what to do."""
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Reference:
    """One model of a run.

    Attributes:
        name: what the user calls it: a timm name, ``package.module:function``, or
            ``file.py:function``.
        checkpoint: a file with its weights; empty for timm's own, or the function's.
    """

    name: str
    checkpoint: str = ""

    @property
    def is_function(self) -> bool:
        """Whether a function of the user's makes it."""
        return ":" in self.name

    @property
    def key(self) -> str:
        """The model's name in results and as a folder: unique, and safe on every file system."""
        label = f"{self.name}@{Path(self.checkpoint).stem}" if self.checkpoint else self.name
        safe = re.sub(r"[^A-Za-z0-9._@-]", "-", label).lstrip(".")
        if safe == label and not self.checkpoint:
            return safe
        digest = hashlib.sha256("\\0".join(asdict(self).values()).encode()).hexdigest()[:6]
        return f"{safe}-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def find_references(settings: Settings) -> list[Reference]:
    """The models that the settings ask for, each once, in the order asked for.

    Raises:
        ValueError: no model at all, an unknown name, or a wildcard that matches nothing.
        FileNotFoundError: a checkpoint that is not there.
        ImportError: timm is missing, and a name needs it.
    """
    by_name: dict[str, Reference] = {}
    for text in settings.models:
        for name in _expand(text, settings):
            if not any(fnmatchcase(name, pattern) for pattern in settings.exclude):
                by_name.setdefault(name, Reference(name))
    references = list(by_name.values())
    if settings.checkpoint:
        path = Path(settings.checkpoint).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint {path} does not exist, or is no file.")
        (name,) = _expand(settings.model, settings, wild=False)
        references.append(Reference(name, str(path.resolve())))
    if not references:
        raise ValueError(
            "no model to quantize: name one ('resnet18'), a wildcard ('mobilenetv2*'), "
            "package.module:function, file.py:function, or a checkpoint with its model."
            if not settings.models
            else f"no model is left: exclude takes out all of {', '.join(settings.models)}."
        )
    return references


def _expand(text: str, settings: Settings, wild: bool = True) -> list[str]:
    if ":" in text:
        check_function(text)
        return [text]
    refuse_file(text)
    if _WILD.search(text):
        if not wild:
            raise ValueError(
                f"model must be one name, because one checkpoint fits it; got {text!r}."
            )
        names = matching(text)
        if not names:
            import_timm()
            raise ValueError(f"no timm model matches {text!r}; timm.list_models() tells them all.")
        return names
    if text in registered_names():
        return [text]
    timm = import_timm()  # for a tag, a deprecated name, or a list of what was meant
    base, _, tag = text.partition(".")
    if not timm.is_model(base):
        hint = did_you_mean(base, timm.list_models(), " Did you mean {}?", most=3)
        raise ValueError(
            f"timm has no model {text!r}.{hint} Names, wildcards ('{text[:6]}*') and "
            "package.module:function are understood."
        )
    if tag and text not in timm.list_pretrained(f"{base}.*"):
        tags = [name.split(".", 1)[1] for name in timm.list_pretrained(f"{base}.*")]
        raise ValueError(
            f"{base} has no weights {tag!r} in timm; it has {', '.join(tags) or 'none'}."
        )
    return [text]


def check_function(text: str) -> None:
    """Refuse what names no function: ``package.module:function``, or ``file.py:function``.

    Raises:
        ValueError: with what was expected.
    """
    file = re.fullmatch(r"(.+\.py):[A-Za-z_]\w*", text)
    if file:
        if not Path(file[1]).expanduser().is_file():
            raise ValueError(f"{text!r}: there is no file {file[1]}.")
        return
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError(
            f"{text!r}: a function is named as package.module:function, or as file.py:function."
        )


def check_module(name: str) -> None:
    """Refuse a function of a module that nobody finds from here; nothing is imported.

    Raises:
        ValueError: with where it was looked for.
    """
    module = name.split(":")[0]
    top = module.split(".")[0]
    here = Path.cwd()
    if module.endswith(".py") or (here / top).is_dir() or (here / f"{top}.py").is_file():
        return
    if top in sys.modules or find_spec(top) is not None:
        return
    hint = did_you_mean(top, [path.stem for path in here.glob("*.py")])
    raise ValueError(
        f"{name!r}: there is no module {top!r} in {here}, and none is installed.{hint}"
    )


def refuse_file(text: str) -> None:
    """Refuse a file in a model's place, and say what to type.

    Raises:
        ValueError: with what to type.
    """
    path = Path(text)
    kind = path.suffix.lower()
    if kind in CHECKPOINTS:
        raise ValueError(
            f"{text} is a file of weights; say which model it belongs to: --model NAME "
            f"--checkpoint {text}, where NAME is a timm name, package.module:function or "
            "file.py:function."
        )
    if kind in FILES:
        raise ValueError(
            f"{text} is a file, and a model is wanted: a timm name, package.module:function or "
            f"file.py:function; {FILES[kind]}."
        )
    module = path if kind == ".py" else path.with_name(f"{path.name}.py")
    if kind == ".py" or module.is_file():
        raise ValueError(
            f"{text} is a module; name the function in it that returns the model: "
            f"{module}:FUNCTION."
        )


def import_timm() -> Any:
    """timm, or an ImportError that says how to get it."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "the model zoo needs timm, which is not installed; install it with: pip install "
            "'zaq_plugin[timm]'."
        ) from error
    return timm
