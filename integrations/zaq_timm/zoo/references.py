"""Which models a run is about: names and wildcards, a checkpoint, or a function that makes one."""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from zaq_timm.zoo.settings import Settings
from zaq_timm.zoo.timm_names import matching, registered_names

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Reference:
    """One model of a run.

    Attributes:
        name: what the user calls it: a timm name, or ``package.module:function``.
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
            "package.module:function, or a checkpoint with its model."
            if not settings.models
            else f"no model is left: exclude takes out all of {', '.join(settings.models)}."
        )
    return references


def _expand(text: str, settings: Settings, wild: bool = True) -> list[str]:
    if ":" in text:
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
            raise ValueError(f"{text!r}: a function is named as package.module:function.")
        return [text]
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
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
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
