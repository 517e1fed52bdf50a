"""Weights and records out of whatever holds them: models, checkpoints, ONNX files, results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from zaq_plugin.report import Audit, LayerRecord, Manifest
from zaq_timm.zoo.details import DETAILS
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.references import CHECKPOINTS, Reference, find_references
from zaq_timm.zoo.settings import Settings

MANIFEST = "manifest.json"


@dataclass
class Contents:
    """What is in one of the two things that are compared.

    Attributes:
        name: as the user typed it.
        weights: layer to weight, float; empty for results.
        audits: model to its layers' records, for results; empty for weights.
    """

    name: str
    weights: dict[str, Tensor] = field(default_factory=dict)
    audits: dict[str, Audit] = field(default_factory=dict)


def contents_of(text: str, settings: Settings, model: str = "") -> Contents:
    """Reads a folder of results, a file, or a model.

    Args:
        text: a folder from ``zaq-quantize run`` or ``demo``, an ONNX file, a checkpoint, a timm
            name, or ``package.module:function``.
        settings: how a model is loaded.
        model: whose weights a plain checkpoint has; it is loaded and folded then.

    Raises:
        ValueError: it is none of these, or is damaged.
        LeftOut: the model cannot be had.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return Contents(text, audits=_results(path))
    if path.suffix == ".onnx":
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist, or is no file.")
        from zaq_onnx.stored import float_weights

        arrays = float_weights(path)
        return Contents(text, {n: torch.from_numpy(v.copy()) for n, (_, v) in arrays.items()})
    if path.suffix in CHECKPOINTS:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist, or is no file.")
        return Contents(text, _checkpoint(path, settings, model))
    (reference,) = find_references(_with_model(text, settings))
    return Contents(text, model_weights(reference, settings))


def _with_model(text: str, settings: Settings) -> Settings:
    return replace(settings, models=(text,))


def model_weights(reference: Reference, settings: Settings) -> dict[str, Tensor]:
    """Every weight of two dimensions and more, BatchNorm folded as quantization does."""
    from zaq_plugin.ptq import fold_batch_norm
    from zaq_timm.zoo.models import load

    loaded = load(reference, settings)
    folded = fold_batch_norm(loaded.model, (torch.zeros(2, *loaded.inputs.shape),))
    return _matrices(folded.state_dict())


def _matrices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removesuffix(".weight"): value.detach().float()
        for name, value in state.items()
        if name.endswith("weight") and value.dim() >= 2 and value.is_floating_point()
    }


def _checkpoint(path: Path, settings: Settings, model: str) -> dict[str, Tensor]:
    """Quantized tensors from `save_quantized`, or the weights of a plain checkpoint."""
    from zaq_plugin import load_quantized
    from zaq_timm.zoo.models import read_checkpoint

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError

        try:
            return {name: t.dequantize() for name, t in load_quantized(path).items()}
        except (ValueError, SafetensorError):
            pass  # a plain one, or a damaged one, which the next says
    if model:
        named = replace(settings, checkpoint=str(path), model=model)
        return model_weights(find_references(named)[0], named)
    return _matrices(read_checkpoint(path))


def _results(folder: Path) -> dict[str, Audit]:
    """Records by model: of a zoo's folder, or of the folder of one run."""
    if (folder / MANIFEST).is_file():
        manifest = Manifest.load(folder / MANIFEST)
        audits = dict(manifest.audits)
        if len(manifest.layers):
            audits[manifest.model or folder.name] = manifest.layers
        if audits:
            return audits
    from zaq_timm.zoo.results import Results

    results = Results.read(folder)
    by_model = {}
    for key in results.rows:
        details = results.detail(key, DETAILS)
        if details and details.get("layers"):
            by_model[key] = Audit([LayerRecord.from_dict(record) for record in details["layers"]])
    if not by_model:
        raise LeftOut(f"{folder} has no layers in it: no model of it is done")
    return by_model
