"""How a model's images are normalised: by options, by its ``pretrained_cfg``, or as ImageNet's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.quantities import input_shape, per_channel
from zaq_timm.zoo.settings import Settings

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
WAY_OUT = "pass --mean and --std (for pixels from 0 to 1: --mean 0 --std 1)"

Numbers = tuple[float, ...]


def normalisation(
    config: Mapping[str, Any], settings: Settings, channels: int
) -> tuple[Numbers, Numbers, tuple[str, ...]]:
    """Mean and deviation of a model's images, a value a channel, and what a user must know of them.

    Args:
        config: The model's ``pretrained_cfg``.
        settings: Its ``mean`` and ``std`` win.
        channels: Of the images.

    Raises:
        LeftOut: They are no numbers, or do not fit the channels.
    """
    values, assumed, spread = {}, [], []
    for name, text in (("mean", settings.mean), ("std", settings.std)):
        given = per_channel(name, text) or _of_config(name, config)
        if given is None:
            assumed.append(name)
        numbers = given or IMAGENET[name]
        if text and len(numbers) not in (1, channels):
            raise LeftOut(
                f"--{name} has {len(numbers)} numbers, and the model's images have {channels} "
                f"channel(s); pass one number, or {channels}"
            )
        if len(numbers) not in (1, channels):
            spread.append(name)
        values[name] = _for_all(numbers, channels)
    shown = ", ".join(f"{name} {_listed(numbers)}" for name, numbers in values.items())
    notes = []

    def example(value: float) -> str:
        return f"({value},)" + (f" * {channels}" if channels > 1 else "")

    if assumed:
        notes.append(
            f"the model does not say its images' {' and '.join(assumed)}: ImageNet's is taken; "
            f'give it a pretrained_cfg, such as model.pretrained_cfg = {{"mean": {example(0.5)}, '
            f'"std": {example(0.25)}}}, or {WAY_OUT}; here {shown}'
        )
    elif spread:
        notes.append(
            f"the model's {' and '.join(spread)} are not of {channels} channel(s), as its images "
            f"are: one value is taken for all ({shown}); {WAY_OUT} if it was trained on others"
        )
    return values["mean"], values["std"], tuple(notes)


def in_words(settings: Settings, known_to_timm: bool) -> str:
    """What is known of it before a model is loaded, for the plan.

    Args:
        settings: Of the run.
        known_to_timm: Whether all models are timm's own, which say it.
    """
    told = {"mean": settings.mean, "std": settings.std}
    absent = [name for name, text in told.items() if not text]
    words = [
        f"{name} {_listed(per_channel(name, text) or ())}" for name, text in told.items() if text
    ]
    if absent and known_to_timm:
        words.append(f"{' and '.join(absent)} as timm says")
    elif absent:
        words.append(
            f"{' and '.join(absent)} as the model's pretrained_cfg says, ImageNet's where it says "
            f"none: if that is wrong, {WAY_OUT}"
        )
    shape = input_shape(settings.input_size)
    if absent and shape and shape[0] != len(IMAGENET["mean"]):
        words.append(f"ImageNet's three values become one for images of {shape[0]} channel(s)")
    return "; ".join(words)


def _of_config(name: str, config: Mapping[str, Any]) -> Numbers | None:
    """A model's own values; a single number is for all channels."""
    value = config.get(name)
    if value is None or value == ():
        return None
    try:
        numbers = tuple(float(v) for v in (value if isinstance(value, list | tuple) else (value,)))
    except (TypeError, ValueError) as error:
        raise LeftOut(
            f"its pretrained_cfg has {name}={value!r}; expected a number for each channel"
        ) from error
    if name == "std" and any(v <= 0 for v in numbers):
        raise LeftOut(f"its pretrained_cfg has std={value!r}; expected numbers above 0")
    return numbers


def _for_all(numbers: Numbers, channels: int) -> Numbers:
    if len(numbers) == channels:
        return numbers
    if len(set(numbers)) == 1:
        return (numbers[0],) * channels
    return (0.5 if channels != 1 else sum(numbers) / len(numbers),) * channels


def _listed(numbers: Numbers) -> str:
    return ", ".join(f"{value:.4g}" for value in numbers)
