"""From a reference to a float model that is ready to be quantized, and how its images look."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.errors import did_you_mean, in_short
from zaq_plugin.ptq.wrappers import without_prefixes
from zaq_plugin.zero_shot import ImageFormat
from zaq_timm.zoo.errors import LeftOut, is_out_of_memory
from zaq_timm.zoo.normalisation import normalisation
from zaq_timm.zoo.quantities import input_shape
from zaq_timm.zoo.references import Reference, import_timm
from zaq_timm.zoo.settings import Settings


@dataclass(frozen=True)
class Inputs(ImageFormat):
    """How a model wants its images, from timm's ``pretrained_cfg``.

    Attributes:
        interpolation: how images are resized.
        crop_pct: the share of the resized image that is cropped out of its middle.
    """

    interpolation: str = "bicubic"
    crop_pct: float = 1.0


@dataclass(frozen=True)
class Loaded:
    """A float model in evaluation mode, its inputs, where its weights come from, and remarks."""

    model: nn.Module
    inputs: Inputs
    weights: str
    notes: tuple[str, ...] = ()


def load(reference: Reference, settings: Settings) -> Loaded:
    """Makes the model, fills in its weights, and tries it on one image.

    Raises:
        LeftOut: the model cannot be had, or is none that takes images; the text says why.
    """
    torch.manual_seed(settings.seed)
    weights = "random"
    if reference.is_function:
        model, weights = made_by(reference.name), "the function's own"
    else:
        model, weights = _create(reference, settings)
    if reference.checkpoint:
        load_weights(model, Path(reference.checkpoint))
        weights = f"checkpoint {Path(reference.checkpoint).name}"
    model = model.eval().float().requires_grad_(False)
    inputs, notes = _inputs(model, settings)
    _try(model, inputs)
    return Loaded(model, inputs, weights, notes)


def _create(reference: Reference, settings: Settings) -> tuple[nn.Module, str]:
    timm = import_timm()
    options: dict[str, Any] = {}
    if settings.num_classes:
        options["num_classes"] = settings.num_classes
    shape = input_shape(settings.input_size)
    if shape and shape[0] != 3:
        options["in_chans"] = shape[0]
    if shape and (timm.get_pretrained_cfg_value(reference.name, "fixed_input_size")):
        options["img_size"] = shape[1] if shape[1] == shape[2] else shape[1:]
    pretrained = settings.pretrained and not reference.checkpoint
    if pretrained and not timm.models.is_model_pretrained(reference.name.split(".")[0]):
        raise LeftOut(
            "timm has no pretrained weights for it; pass them with --checkpoint FILE --model "
            f"{reference.name}, or leave --pretrained out"
        )
    try:
        model = timm.create_model(reference.name, pretrained=pretrained, **options)
    except Exception as error:
        if pretrained and _is_offline(error):
            raise LeftOut(
                f"its weights could not be downloaded ({_first_line(error)}); without a network "
                "pass a local file: zaq-quantize run --model "
                f"{reference.name} --checkpoint FILE"
            ) from error
        raise LeftOut(f"timm cannot make it ({_first_line(error)})") from error
    return model, "timm's pretrained ones" if pretrained else "random"


def _is_offline(error: BaseException) -> bool:
    """Whether a download failed; timm and the hub raise errors of many families for that."""
    seen: BaseException | None = error
    while seen is not None:
        names = {cls.__name__ for cls in type(seen).__mro__}
        if names & {
            "ConnectionError",
            "HfHubHTTPError",
            "HTTPError",
            "LocalEntryNotFoundError",
            "OfflineModeIsEnabled",
            "RequestException",
            "Timeout",
            "TimeoutException",
            "TransportError",
            "URLError",
        }:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def made_by(name: str) -> nn.Module:
    """What a function of the user's returns: ``package.module:function``, ``file.py:function``.

    Raises:
        LeftOut: there is none, it fails, or what it returns is no module.
    """
    place, function = name.rsplit(":", 1)
    try:
        module = _file(Path(place)) if place.endswith(".py") else _package(place)
    except ImportError as error:
        raise LeftOut(f"{place} cannot be imported ({_first_line(error)})") from error
    except Exception as error:
        raise LeftOut(f"{place} cannot be imported ({in_short(error)})") from error
    make = getattr(module, function, None)
    if make is None:
        known = [n for n in vars(module) if n[0] != "_"]
        hint = did_you_mean(function, known, "; did you mean {}?")
        raise LeftOut(f"{name} failed (module {place!r} has no attribute {function!r}{hint})")
    try:
        model = make()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        text = f"{name} failed ({in_short(error)}); it is called without arguments"
        raise LeftOut(text) from error
    if not isinstance(model, nn.Module):
        raise LeftOut(f"{name}() must return a torch.nn.Module; it returned {type(model).__name__}")
    return model


def _package(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as ``python -m`` does
    return importlib.import_module(name)


def _file(path: Path) -> ModuleType:
    """A module from its file, beside which it finds its own, as ``python file.py`` does."""
    path = path.expanduser().resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = f"zaq_file_{path.stem}"  # which hides no module of that name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module in {path}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a checkpoint: safetensors, or a torch file that holds nothing but tensors.

    Names may have the prefixes of compiled and parallel models (``_orig_mod.``, ``module.``).

    Raises:
        LeftOut: the file is no checkpoint, holds code, or belongs to another model.
    """
    try:
        state = read_checkpoint(path)
    except (OSError, ValueError) as error:
        raise LeftOut(str(error)) from error
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = without_prefixes(state, own)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - shapes.keys() - optional)
    unknown = sorted(shapes.keys() - own.keys())
    wrong = [n for n in own if n in shapes and own[n] != shapes[n]]
    if missing or unknown or wrong:
        problems = []
        if wrong:
            first = wrong[0]
            problems.append(
                f"{len(wrong)} of other shape ({first}: {shapes[first]} in the file, {own[first]} "
                "in the model; num_classes may be wrong)"
            )
        problems += [f"{len(missing)} missing ({missing[0]})"] if missing else []
        problems += [f"{len(unknown)} unknown ({unknown[0]})"] if unknown else []
        raise LeftOut(f"{path.name} does not fit the model: tensors {', '.join(problems)}")
    model.load_state_dict(state, strict=False)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint; nothing in it is ever run.

    Raises:
        ValueError: no such file format, damaged, or a pickle with code in it.
        OSError: it cannot be read.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path.name} is no whole safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} is refused: it holds more than tensors, and unpickling it could run "
            "code. Save its state_dict with safetensors.torch.save_file, where you trust it"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path.name} is no torch checkpoint ({_first_line(error)})") from error
    for name in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path.name} holds no state_dict: names and tensors are expected")
    return {str(name): value for name, value in content.items()}


def _inputs(model: nn.Module, settings: Settings) -> tuple[Inputs, tuple[str, ...]]:
    cfg: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    config = dict(cfg) if isinstance(cfg, Mapping) else {}
    shape = input_shape(settings.input_size) or config.get("input_size")
    if shape is None:
        raise LeftOut(
            "it does not say what images it takes; pass --input-size CxHxW, or give the model a "
            "pretrained_cfg with input_size, mean and std"
        )
    channels = int(shape[0])
    mean, std, notes = normalisation(config, settings, channels)
    inputs = Inputs(
        (channels, int(shape[1]), int(shape[2])),
        mean,
        std,
        str(config.get("interpolation") or "bicubic"),
        float(config.get("crop_pct") or 1.0),
    )
    return inputs, notes


@torch.no_grad()
def _try(model: nn.Module, inputs: Inputs) -> None:
    """One forward pass: what the float model cannot do is no fault of quantization."""
    try:
        out = model(torch.zeros(2, *inputs.shape))
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise LeftOut(
            f"the float model does not take images of {'x'.join(map(str, inputs.shape))} "
            f"({_first_line(error)}); pass another --input-size"
        ) from error
    parts = _tensors(out)
    if not parts:
        raise LeftOut(f"its output holds no tensor ({type(out).__name__})")


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, Mapping):
        out = list(out.values())
    return [t for part in out for t in _tensors(part)] if isinstance(out, list | tuple) else []


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())[:300]
