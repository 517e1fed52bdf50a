"""Squared error of number formats, at equal MAC bits and at equal stored bits.

    python -m benchmarks.format.error [--data FOLDER] [--out benchmarks/results/format_error.md]

Synthetic weights (Gaussian, Laplacian, Student-t with 4 degrees of freedom; 256 channels of 1152)
and, with --data, the convolution and linear weights of real networks, BatchNorm folded, without the
layers of fewer than 64 weights a channel, which a codebook could simply list. A Lloyd-Max codebook
per channel stands as the bound: the better of two local optima, begun at the quantiles and at the
levels of PWLQ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from benchmarks.data.tasks import load_task
from benchmarks.rows import command_line
from benchmarks.tables import table
from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.ptq.plan import stored_size
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec, quantize, sqnr_db
from zaq_plugin.pwlq.codebook import CodebookSpec
from zaq_plugin.pwlq.power_of_two import PowerOfTwoSpec

NEEDS = """Needs nothing; --data DIR adds real networks. Takes some minutes."""

LLOYD_ROUNDS = 60
FEWEST = 64


def lloyd_max(w: Tensor, stored_bits: int) -> Tensor:
    """Values of a per-channel codebook of 2^stored_bits levels, by Lloyd's iteration."""
    count = 2**stored_bits
    rows = w.reshape(w.shape[0], -1).double()
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    pwlq = quantize(w, PWLQSpec(stored_bits - 1, grid="float")).codebook.double()
    starts = [torch.quantile(rows, share, dim=1).T.contiguous(), torch.cat([pwlq, pwlq[:, -1:]], 1)]
    books = [_iterate(rows, levels) for levels in starts]
    errors = [(values - rows).square().sum(1, keepdim=True) for values in books]
    return torch.where(errors[0] < errors[1], books[0], books[1]).view(w.shape)


def _iterate(rows: Tensor, levels: Tensor) -> Tensor:
    for _ in range(LLOYD_ROUNDS):
        index = torch.searchsorted((levels[:, 1:] + levels[:, :-1]).contiguous() / 2, rows)
        total = torch.zeros_like(levels).scatter_add_(1, index, rows)
        number = torch.zeros_like(levels).scatter_add_(1, index, torch.ones_like(rows))
        levels = torch.where(number > 0, total / number.clamp(min=1), levels).sort(1).values
    index = torch.searchsorted((levels[:, 1:] + levels[:, :-1]).contiguous() / 2, rows)
    return torch.gather(levels, 1, index)


def formats(bits: int) -> list[tuple[str, QuantSpec]]:
    """PWLQ of b MAC bits (b + 1 stored) by each policy, and uniform grids of b and b + 1 bits."""
    rows: list[tuple[str, QuantSpec]] = []
    for width in (bits, bits + 1):
        rows += [
            ("uniform, min-max", UniformSpec(width)),
            ("uniform, best clip", UniformSpec(width, clip="mse")),
            ("uniform asymmetric, best clip", UniformSpec(width, "asymmetric", "mse")),
        ]
    paper: dict[str, Any] = {"bits": bits, "symmetry": "symmetric", "shared_endpoints": True}
    rows += [
        (
            "PWLQ overlapping, search",
            PWLQSpec(bits, overlapping=True, symmetry="symmetric", policy="search"),
        ),
        ("PWLQ, Gaussian closed form (paper)", PWLQSpec(policy="gaussian", **paper)),
        ("PWLQ, Laplacian closed form (paper)", PWLQSpec(policy="laplacian", **paper)),
        ("PWLQ, search (paper)", PWLQSpec(policy="search", **paper)),
        ("PWLQ, joint", PWLQSpec(policy="joint", **paper)),
        ("PWLQ, joint, open tail", PWLQSpec(bits, symmetry="symmetric")),
        ("PWLQ, joint, asymmetric", PWLQSpec(bits, shared_endpoints=True)),
        ("**PWLQ, joint, asymmetric, open tail (default)**", PWLQSpec(bits)),
        ("the default on the float grid", PWLQSpec(bits, grid="float")),
        ("the default with 2 breakpoints", PWLQSpec(bits, breakpoints=2)),
    ]
    return rows + others(bits)


def others(bits: int) -> list[tuple[str, QuantSpec]]:
    """Power-of-two levels of b bits, and free codebooks on int8 levels of b and b + 1."""
    rows: list[tuple[str, QuantSpec]] = []
    if bits <= 4:
        rows.append(("power of two", PowerOfTwoSpec(bits)))
    return rows + [("free codebook, int8 levels", CodebookSpec(bits + i)) for i in (0, 1)]


def compared_sizes(bits: int) -> list[tuple[str, QuantSpec]]:
    """Formats whose tables count, besides `others`."""
    return [
        ("uniform asymmetric, best clip", UniformSpec(bits, "asymmetric", "mse")),
        ("PWLQ, joint, asymmetric, open tail (default)", PWLQSpec(bits)),
        *others(bits),
    ]


def synthetic() -> dict[str, list[Tensor]]:
    """One weight per law, all from seed 0."""
    generator = np.random.default_rng(0)
    shape = (256, 1152)
    laws = {
        "Gaussian": generator.standard_normal(shape),
        "Laplacian": generator.laplace(size=shape),
        "Student-t 4": generator.standard_t(4, size=shape),
    }
    return {name: [torch.from_numpy(values).float()] for name, values in laws.items()}


def real(folder: Path) -> dict[str, list[Tensor]]:
    """Folded weights of the networks in the data folder."""
    networks = {}
    for task in ("cifar10", "imagenet"):
        loaded = load_task(task, folder)
        model = fold_batch_norm(loaded.model, (loaded.images[:1],))
        weights = [
            m.weight.detach()
            for m in model.modules()
            if isinstance(m, nn.Conv2d | nn.Linear) and m.weight[0].numel() >= FEWEST
        ]
        networks[{"cifar10": "ResNet-20", "imagenet": "MobileNetV1-0.25"}[task]] = weights
    return networks


def mean_sqnr(weights: Iterable[Tensor], represent: Callable[[Tensor], Tensor]) -> float:
    """Mean over layers of the signal-to-quantization-noise ratio, dB."""
    return float(np.mean([sqnr_db(w, represent(w)) for w in weights]))


def section(bits: int, sets: dict[str, list[Tensor]]) -> str:
    """Markdown tables: dB for each format and set of weights, then bits a weight."""
    heads, lines = ["format", "MAC bits", "stored bits", *sets], []
    for name, spec in track(formats(bits), f"b = {bits}", disable=not sys.stderr.isatty()):
        lines.append(row(name, spec, sets))
    for stored in (bits, bits + 1):
        cells = [
            f"{mean_sqnr(ws, lambda w, k=stored: lloyd_max(w, k)):.2f}"  # type: ignore[misc]
            for ws in sets.values()
        ]
        lines.append(["Lloyd-Max codebook (bound)", "-", str(stored), *cells])
    sizes = [size_row(name, spec, sets) for name, spec in compared_sizes(bits)]
    return "\n".join(
        [
            f"### b = {bits}",
            "",
            *table(heads, lines, "l"),
            "",
            "Bits a weight on disk, levels included:",
            "",
            *table(heads, sizes, "l"),
        ]
    )


def row(name: str, spec: QuantSpec, sets: dict[str, list[Tensor]]) -> list[str]:
    """A format's line: dB of each set."""
    cells = [
        f"{mean_sqnr(ws, lambda w: quantize(w, spec).dequantize()):.2f}" for ws in sets.values()
    ]
    return [name, str(spec.mac_bits), str(spec.stored_bits), *cells]


def size_row(name: str, spec: QuantSpec, sets: dict[str, list[Tensor]]) -> list[str]:
    """A format's line: bits a weight of each set, of codes and of what makes the levels again."""
    cells = []
    for ws in sets.values():
        size = sum(stored_size(w.numel(), w.shape[0], spec) for w in ws)
        cells.append(f"{8 * size / sum(w.numel() for w in ws):.2f}")
    return [name, str(spec.mac_bits), str(spec.stored_bits), *cells]


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", type=Path, help="folder with real networks; see its README")
    parser.add_argument("--bits", type=int, nargs="+", choices=range(3, 8), default=[3, 4, 5])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = synthetic() | (real(arguments.data) if arguments.data else {})
    text = (
        "Signal-to-quantization-noise ratio of weights, dB (higher is better), mean over layers; "
        "all formats per output channel. One extra bit is worth about 6 dB.\n\n"
        + "\n\n".join(section(bits, sets) for bits in arguments.bits)
        + "\n"
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
