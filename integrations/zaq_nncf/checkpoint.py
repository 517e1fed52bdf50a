"""Saving and loading a quantized model: NNCF's configuration as JSON, tensors in safetensors."""

from __future__ import annotations

import json
import os
from typing import Any

import nncf.torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from zaq_nncf._compat import hooks_of
from zaq_nncf.preparation import prepare_model
from zaq_nncf.student import note_parts
from zaq_plugin.files import write_whole

ALLOWED_MODULES = ("nncf.*", "zaq_nncf.*")
"""What to pass as ``allowed_modules`` to ``nncf.torch.load_from_config``."""

_FORMAT = "zaq_nncf/1"


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a quantized model to one safetensors file, its NNCF configuration inside as JSON.

    Args:
        model: From `quantize`, trained or not; not stripped (export that instead).
        path: Of the file.

    Raises:
        ValueError: the model is not NNCF's, or is stripped.
    """
    hooks_of(model)
    try:
        config = json.dumps(nncf.torch.get_config(model))
    except nncf.InternalError as error:
        raise ValueError(
            f"this {type(model).__name__} holds hooks that NNCF cannot describe; was it stripped? "
            f"Save it before zaq_nncf.strip. NNCF says: {error}"
        ) from error
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape, value.dtype)
        if value.numel() and place in names:
            same[name] = names[place]
            continue
        names[place] = name
        tensors[name] = value.detach().cpu().contiguous()
    header = {"config": json.loads(config), "same": same}
    write_whole(path, save(tensors, {_FORMAT: json.dumps(header)}))


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], example_input: Any = None
) -> nn.Module:
    """Load what `save_checkpoint` wrote into a float model, in any process. Nothing is unpickled.

    Args:
        model: The float model, as it was passed to `quantize`; its weights do not matter. It is not
            touched.
        path: Of the file.
        example_input: As for `prepare_model`.

    Returns:
        The quantized model, in evaluation mode.

    Raises:
        ValueError: the file is not such a checkpoint, or belongs to another model.
    """
    with safe_open(path, framework="pt") as file:
        said = (file.metadata() or {}).get(_FORMAT)
        if said is None:
            raise ValueError(
                f"{os.fspath(path)}: not a checkpoint of zaq_nncf (its metadata has no {_FORMAT!r})"
                ". Write it with zaq_nncf.save_checkpoint."
            )
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(said)
    state |= {name: state[other] for name, other in header["same"].items()}
    loaded: nn.Module = nncf.torch.load_from_config(
        prepare_model(model, example_input), header["config"], allowed_modules=ALLOWED_MODULES
    )
    try:
        loaded.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{os.fspath(path)} belongs to another model than this {type(model).__name__}: {error}"
        ) from error
    if example_input is not None:
        note_parts(loaded.eval(), example_input)
    return loaded.eval()
