"""Time and memory of the number format on the weights of a ResNet-50, as ratios within one run.

    python -m benchmarks.format [--repeats 7] [--out benchmarks/results/format.md]

The yardstick is torch's fused ``fake_quantize_per_channel_affine`` over the same weights, with its
scales given; ours choose clip and breakpoints within the measured time, but for the rows that say
"edges given". Runs of yardstick and subject alternate; medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from rich.progress import track
from torch import Tensor, nn

from benchmarks.rows import command_line
from benchmarks.tables import table
from benchmarks.timing import alternating
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, fake_quantize, quantize, solve_edges

NEEDS = """Needs timm, and Linux for the memory peaks. Takes some minutes."""

POLICIES = [
    ("closed form (gaussian)", PWLQSpec(policy="gaussian")),
    ("closed form (gaussian), float grid", PWLQSpec(policy="gaussian", grid="float")),
    ("exact minimiser (gaussian)", PWLQSpec(policy="gaussian-exact")),
    ("search", PWLQSpec(policy="search")),
    ("joint (default)", PWLQSpec()),
    ("uniform, best clip", UniformSpec(4, clip="mse")),
]
COMPILED_LAYERS = 3


def resnet50_weights() -> list[Tensor]:
    """The 25.5 million convolution and linear weights of a randomly initialised ResNet-50."""
    torch.manual_seed(0)
    model = timm.create_model("resnet50", pretrained=False)
    kinds = nn.Conv2d | nn.Linear
    return [m.weight.detach() for m in model.modules() if isinstance(m, kinds)]


def affine(w: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point for torch's own operator, 4 bits."""
    scale = w.flatten(1).abs().amax(1) / 7
    return scale, torch.zeros_like(scale, dtype=torch.int32)


def torch_operator(w: Tensor, qparams: tuple[Tensor, Tensor]) -> Tensor:
    """torch's fused per-channel fake quantization."""
    return torch.fake_quantize_per_channel_affine(w, *qparams, 0, -7, 7)


def paired(
    subject: Callable[[], object], yardstick: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Medians of the subject's and the yardstick's time, run in turn after a warm-up."""
    times = alternating({"subject": subject, "yardstick": yardstick}, repeats)
    return times["subject"].wall, times["yardstick"].wall


def forward_rows(weights: Sequence[Tensor], repeats: int) -> list[tuple[str, float, float]]:
    """(name, seconds, yardstick's seconds) of quantization without gradients."""
    qparams = [affine(w) for w in weights]

    def yardstick() -> None:
        for w, q in zip(weights, qparams, strict=True):
            torch_operator(w, q)

    subjects: list[tuple[str, Callable[[], object]]] = [
        ("clone() (the memory limit)", lambda: [w.clone() for w in weights]),
    ]
    for name, spec in POLICIES:
        subjects.append(
            (f"quantize, {name}", lambda s=spec: [quantize(w, s) for w in weights])  # type: ignore[misc]
        )
    rows = []
    for name, subject in track(subjects, "forward", disable=not sys.stderr.isatty()):
        rows.append((name, *paired(subject, yardstick, repeats)))
    return rows


def training_rows(weights: Sequence[Tensor], repeats: int) -> list[tuple[str, float, float]]:
    """Forward and backward with edges given, eager, and compiled on the largest layers."""
    spec = PWLQSpec(policy="gaussian")
    rows = []
    largest = sorted(weights, key=lambda w: -w.numel())[:COMPILED_LAYERS]
    compiled = torch.compile(fake_quantize, fullgraph=True)
    for name, function, layers in (
        ("fake_quantize forward + backward, eager, edges given", fake_quantize, weights),
        (f"the same, compiled, {COMPILED_LAYERS} largest layers", compiled, largest),
    ):
        leaves = [w.clone().requires_grad_() for w in layers]
        edges = [solve_edges(w, spec) for w in layers]
        qparams = [affine(w) for w in layers]
        ones = [torch.ones_like(w) for w in layers]

        def subject(f=function, leaves=leaves, edges=edges, ones=ones) -> None:  # type: ignore[no-untyped-def]
            for w, e, g in zip(leaves, edges, ones, strict=True):
                torch.autograd.grad(f(w, spec, edges=e), w, g)

        def yardstick(leaves=leaves, qparams=qparams, ones=ones) -> None:  # type: ignore[no-untyped-def]
            for w, q, g in zip(leaves, qparams, ones, strict=True):
                torch.autograd.grad(torch_operator(w, q), w, g)

        rows.append((name, *paired(subject, yardstick, repeats)))
    return rows


def peaks() -> list[list[str]]:
    """Growth of the resident peak while the largest layer is quantized, in multiples of it.

    Each spec in a process of its own, warmed up on a small weight.
    """
    lines = []
    for name, spec in POLICIES:
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.format", "--peak", spec.to_json()],
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        lines.append([f"quantize, {name}", f"{float(result.stdout):.1f}"])
    return lines


def peak_of(text: str) -> float:
    """What `peaks` runs in a child process."""
    from zaq_plugin.pwlq import spec_from_json

    torch.set_num_threads(1)
    spec = spec_from_json(text)
    w = torch.randn(512, 512, 3, 3, generator=torch.Generator().manual_seed(0))
    quantize(w[:8], spec)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins again at the present
    before = resident("VmRSS")
    quantize(w, spec)
    return (resident("VmHWM") - before) / (w.numel() * w.element_size())


def resident(field: str) -> int:
    """A field of the process's memory status, bytes: VmRSS is now, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_of(arguments.peak))
        return
    weights = resnet50_weights()
    count = sum(w.numel() for w in weights) / 1e6
    cores = torch.get_num_threads()
    text = [
        f"{count:.1f} million weights of a ResNet-50, float32, b = 4 (MAC bits; 5 stored), "
        f"per output channel; torch {torch.__version__}, CPU. Time as a multiple of torch's fused "
        "`fake_quantize_per_channel_affine` over the same weights (forward, or forward and "
        "backward), "
        f"medians of {arguments.repeats} alternating runs.",
    ]
    for threads in dict.fromkeys((1, cores)):
        torch.set_num_threads(threads)
        rows = forward_rows(weights, arguments.repeats) + training_rows(weights, arguments.repeats)
        text += [
            "",
            *table(
                [f"{threads} thread{'s' if threads > 1 else ''}", "x torch", "ms", "torch, ms"],
                [
                    [name, f"{ours / base:.2f}", f"{ours * 1e3:.0f}", f"{base * 1e3:.0f}"]
                    for name, ours, base in rows
                ],
                "l",
            ),
        ]
    text += [
        "",
        *table(
            ["memory peak on the largest layer (512 x 512 x 3 x 3)", "x the layer"], peaks(), "l"
        ),
        "",
    ]
    print("\n".join(text))
    if arguments.out:
        arguments.out.write_text("\n".join(text))
