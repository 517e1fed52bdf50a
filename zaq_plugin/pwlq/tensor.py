"""`PWLQTensor`: codes, codebooks and scales, their sizes, and their file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.kernels import codebook_from
from zaq_plugin.pwlq.levels import lone_sides, tops_of, with_tops, without_tops
from zaq_plugin.pwlq.packing import entropy_bits, pack_codes, packed_size, unpack_codes
from zaq_plugin.pwlq.registry import spec_from_json
from zaq_plugin.pwlq.statistics import measure

_FORMAT = "zaq_plugin.pwlq/3"
_BEFORE = "zaq_plugin.pwlq/2"
"""Files in which the codes of an empty side lie idle, see `lone_sides`; they are read as well."""


@dataclass(frozen=True, repr=False)
class PWLQTensor:
    """A quantized tensor.

    Attributes:
        codes: w's shape, uint8 (int16 above 8 stored bits): position of each value's level in its
            channel's codebook.
        codebook: (channels, levels) ascending; int8 (int16 for 8-bit asymmetric uniform grids) in
            units of scale, or float32 levels on the float grid, where scale is 1.
        scale: (channels,) float32.
        axis: channel axis, None per tensor.
        spec: the format.
        dtype: of the tensor that was quantized.
        sqnr_db: signal to quantization noise of the whole tensor, dB; infinite if exact.
        center_fraction: share of values within the center piece, |w| <= p_1; 1 for a uniform grid.
        edges: (sides, channels, n + 1) float32 clip and breakpoints that generate the codebook and
            the scale, which then need not be stored; None for levels that were moved afterwards.
            Formats that are kept from overflowing have a column more, the int8 grid's reach.
    """

    codes: Tensor
    codebook: Tensor
    scale: Tensor
    axis: int | None
    spec: Format
    dtype: torch.dtype
    sqnr_db: float
    center_fraction: float
    edges: Tensor | None = None

    def __repr__(self) -> str:
        """Shape, format, error and size; the codes and levels are attributes."""
        return (
            f"PWLQTensor({'x'.join(map(str, self.shape))}, {self.spec.label}, "
            f"{self.sqnr_db:.1f} dB, {self.stored_bytes:,} bytes)"
        )

    @classmethod
    def measured(
        cls,
        codes: Tensor,
        codebook: Tensor,
        scale: Tensor,
        axis: int | None,
        spec: Format,
        w: Tensor,
        edges: Tensor,
    ) -> PWLQTensor:
        """Assemble a tensor and measure it against the original w."""
        noise, fraction = measure(w, codes, codebook, scale, axis, edges if spec.has_tail else None)
        stored = edges.float().contiguous()
        return cls(codes, codebook, scale, axis, spec, w.dtype, noise, fraction, stored)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The represented values: ``codebook[code] * scale``, computed in float32.

        Args:
            dtype: of the result; by default that of the original tensor.
        """
        values: Tensor = torch.ops.zaq.pwlq_dequantize(
            self.codes, self.codebook, self.scale, self.axis
        )
        return values.to(dtype or self.dtype)

    def integer_weight(self) -> Tensor:
        """Integers q with ``dequantize() == scale * q``, for an int8 kernel (w's shape).

        Raises:
            ValueError: on the float grid, whose levels are no integers.
        """
        if self.codebook.is_floating_point():
            raise ValueError(
                "integer_weight() needs the int8 grid; this tensor is on the float grid. "
                "Quantize with grid='int8' (up to 6 MAC bits)."
            )
        ones = torch.ones_like(self.scale)
        values: Tensor = torch.ops.zaq.pwlq_dequantize(self.codes, self.codebook, ones, self.axis)
        return values.to(self.codebook.dtype)

    @property
    def shape(self) -> torch.Size:
        """Shape of the represented tensor."""
        return self.codes.shape

    @property
    def mac_bits(self) -> int:
        """Width of the multiplier's weight operand, the paper's b."""
        return self.spec.mac_bits

    @property
    def stored_bits(self) -> int:
        """Width of one stored code."""
        return self.spec.stored_bits

    @property
    def stored_bytes(self) -> int:
        """Bytes on disk: dense codes, and what the levels take.

        Clip and breakpoints generate the levels, 4 bytes each; a byte a channel says what the
        largest one of a PWLQ grid is that is kept from overflowing. Levels that were moved
        afterwards are stored themselves, with the scales.
        """
        table = None if self._generated else {"codebook": self.codebook, "scale": self.scale}
        levels = table or _generators(self.edges, self.spec)
        return packed_size(self.codes.numel(), self.stored_bits) + sum(
            t.numel() * t.element_size() for t in levels.values()
        )

    @property
    def _generated(self) -> bool:
        """Whether files hold what makes the levels again, and not the levels."""
        return self.edges is not None and self.spec.generated

    @property
    def entropy_bits(self) -> float:
        """Measured entropy of the codes, bits per value: what ideal entropy coding would store."""
        return entropy_bits(self.codes, self.codebook.shape[1])

    def pack(self) -> Tensor:
        """The codes as dense bytes, see `zaq_plugin.pwlq.packing.pack_codes`."""
        return pack_codes(self.codes, self.stored_bits)


def _generators(edges: Tensor | None, spec: Format) -> dict[str, Tensor]:
    """What levels are made of again: clip, breakpoints, and the largest level of each channel."""
    assert edges is not None
    if not spec.breakpoints:  # a uniform grid is its reach
        return {"edges": edges[..., -1:]}
    generators = {"edges": without_tops(edges, spec)}
    if spec.guarded:
        generators["tops"] = tops_of(edges, spec).to(torch.uint8)
    return generators


def save_quantized(path: str | os.PathLike[str], tensors: Mapping[str, PWLQTensor]) -> None:
    """Write quantized tensors to one safetensors file: packed codes and what generates the levels.

    The same tensors give the same bytes.

    Raises:
        ValueError: if there is nothing to write.
    """
    if not tensors:
        raise ValueError("save_quantized: no tensors given; nothing was quantized.")
    arrays: dict[str, Tensor] = {}
    entries = {}
    for name, q in tensors.items():
        arrays[f"{name}.codes"] = q.pack().cpu().contiguous()
        if q._generated:
            for part, values in _generators(q.edges, q.spec).items():
                arrays[f"{name}.{part}"] = values.cpu().contiguous()
        else:
            arrays[f"{name}.codebook"] = q.codebook.cpu().contiguous()
            arrays[f"{name}.scale"] = q.scale.cpu().contiguous()
        entries[name] = {
            "spec": json.loads(q.spec.to_json()),
            "generated": q._generated,
            "shape": list(q.shape),
            "axis": q.axis,
            "dtype": str(q.dtype).removeprefix("torch."),
            "sqnr_db": q.sqnr_db if math.isfinite(q.sqnr_db) else None,
            "center_fraction": q.center_fraction,
        }
    # One key: safetensors writes several in an order that changes from run to run.
    beside = Path(f"{os.fspath(path)}.part")  # safetensors' own file is for its owner alone
    beside.write_bytes(save(arrays, {_FORMAT: json.dumps(entries)}))
    os.replace(beside, path)


def load_quantized(path: str | os.PathLike[str]) -> dict[str, PWLQTensor]:
    """Read what `save_quantized` wrote. Nothing is unpickled.

    Raises:
        ValueError: if the file is not such a file, or a code lies outside its codebook.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        version = _BEFORE if _BEFORE in metadata else _FORMAT
        if version not in metadata:
            raise ValueError(
                f"{os.fspath(path)}: not a file of quantized tensors (its metadata has no "
                f"{_FORMAT!r}, but {sorted(metadata)}). Write it with save_quantized."
            )
        entries = json.loads(metadata[version])
        idle = version == _BEFORE
        return {name: _read(file, name, entry, idle) for name, entry in entries.items()}


def _read(file: Any, name: str, entry: dict[str, Any], idle: bool) -> PWLQTensor:
    spec = spec_from_json(json.dumps(entry["spec"]))
    shape = entry["shape"]
    if entry["generated"]:
        edges = file.get_tensor(f"{name}.edges")
        if idle:  # a side that is nearly empty keeps its codes
            empty = lone_sides(edges, spec).flip(0).unsqueeze(-1)
            edges = torch.where(empty, torch.finfo(torch.float32).tiny, edges)
        if spec.guarded:
            has_tops = f"{name}.tops" in file.keys()  # noqa: SIM118
            tops = (
                file.get_tensor(f"{name}.tops") if has_tops else torch.full(edges.shape[1:2], 127)
            )
            edges = with_tops(edges, tops)
        codebook, scale = codebook_from(edges, spec)
    else:
        edges = None
        codebook = file.get_tensor(f"{name}.codebook")
        scale = file.get_tensor(f"{name}.scale")
    codes = unpack_codes(file.get_tensor(f"{name}.codes"), spec.stored_bits, math.prod(shape))
    if codes.numel() and int(codes.max()) >= codebook.shape[1]:
        raise ValueError(
            f"{name}: code {int(codes.max())} lies outside its codebook of "
            f"{codebook.shape[1]} levels; the file is damaged."
        )
    codes = codes if spec.stored_bits <= 8 else codes.to(torch.int16)
    return PWLQTensor(
        codes.view(shape),
        codebook,
        scale,
        entry["axis"],
        spec,
        getattr(torch, entry["dtype"]),
        math.inf if entry["sqnr_db"] is None else entry["sqnr_db"],
        entry["center_fraction"],
        edges,
    )
