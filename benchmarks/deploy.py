"""Shipping a network: file sizes, load times, latencies and accuracy under stock runtimes.

Every network is exported three times: in float, by ONNX Runtime's own ``quantize_static`` (stock
int8), and by ``zaq_onnx`` from torchao's converted model, as int8 and packed. Runs that are to be
compared alternate, and medians are reported. Networks of timm have random weights, which run as
fast as trained ones; those of the data folder (``--data``) are real, and so is their accuracy.

    python benchmarks/deploy.py --data ../data --out benchmarks/results/deploy.md

Each network's results are appended to a file of JSON lines next to the table at once; a run that
was stopped goes on with the next network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from rich.console import Console
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import zaq_onnx
import zaq_pt2e
from benchmarks.data import accuracy, load_task, logits_of
from benchmarks.deploy_tables import tables
from zaq_onnx.graph import Graph
from zaq_onnx.inspecting import float_layers, integer_layers
from zaq_onnx.runtimes import (
    openvino_compiled,
    optimized,
    ort_session,
    run_openvino,
    run_ort,
)
from zaq_plugin import PWLQSpec

TIMM = ("resnet18", "resnet50", "mobilenetv2_100", "efficientnet_b0", "vit_tiny_patch16_224")
DATA = ("cifar10", "imagenet")
BITS = {4: 3, 5: 4}
"""MAC bits by stored bits."""

OPSET = 21


@dataclass
class Network:
    """A network to ship.

    Attributes:
        name: Of the row.
        model: Float.
        batches: Images for ranges.
        images: Images to measure accuracy on, and their classes; None for random weights.
        labels: See above.
    """

    name: str
    model: nn.Module
    batches: list[Tensor]
    images: Tensor | None = None
    labels: Tensor | None = None


def network(name: str, data: Path | None) -> Network:
    """A network by name."""
    generator = torch.Generator().manual_seed(0)
    if name in DATA:
        assert data is not None
        task = load_task(name, data)
        size = task.images.shape[-1]
        ranges = task.train
        if ranges is None:  # no image may calibrate: smooth noise with the images' contrast
            small = torch.randn(32, 3, 14, 14, generator=generator)
            ranges = nn.functional.interpolate(small, (size, size), mode="bilinear") * 0.8
        return Network(
            name, task.model, list(ranges[:64].split(8)), task.images[:1000], task.labels[:1000]
        )
    torch.manual_seed(0)
    options = {"zero_init_last": False} if name.startswith("resnet") else {}
    model = timm.create_model(name, **options).eval()
    return Network(name, model, list(torch.randn(8, 3, 224, 224, generator=generator).split(4)))


def convert(net: Network, mac_bits: int) -> nn.Module:
    """By torchao, with PWLQ weights and 8-bit activations."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net.model, (net.batches[0],), dynamic_shapes=({0: batch},))
    prepared = prepare_pt2e(program.module(), zaq_pt2e.PWLQQuantizer(PWLQSpec(bits=mac_bits)))
    converted: nn.Module = convert_pt2e(zaq_pt2e.calibrate(prepared, net.batches))
    return converted


class _Reader(CalibrationDataReader):
    def __init__(self, name: str, batches: list[Tensor]) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter({name: b.numpy()} for b in batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def export_float(net: Network, path: Path) -> None:
    """The float model, by torch's exporter."""
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.onnx.export(
        net.model,
        (net.batches[0],),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert program is not None
    for node in program.model_proto.graph.node:
        del node.metadata_props[:]
    path.write_bytes(program.model_proto.SerializeToString())


def export_stock(net: Network, source: Path, path: Path) -> None:
    """ONNX Runtime's own quantization: QDQ, 8 bits, weights per channel."""
    name = onnx.load(source).graph.input[0].name
    # Without the shapes, which quantize_static wants to infer by itself.
    quantize_static(
        source,
        path,
        _Reader(name, net.batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )


def alternating(
    calls: Mapping[str, Callable[[], object]], repeats: int, warm: bool = True
) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so that a busy machine slows all alike."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + warm):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn or not warm:
                spent[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in spent.items()}


def same_graph(first: Path, second: Path) -> bool:
    """Whether ONNX Runtime makes the same graph of two files: operators, attributes, constants."""
    both = []
    for path in (first, second):
        graph = optimized(path).graph
        known = {t.name: bytes(t.raw_data) or t.SerializeToString() for t in graph.initializer}
        both.append(
            [
                (
                    node.op_type,
                    [known.get(n, b"?") for n in node.input],
                    [a.SerializeToString() for a in node.attribute],
                )
                for node in graph.node
            ]
        )
    return both[0] == both[1]


def measure(net: Network, folder: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Everything about one network."""
    files = {"fp32": folder / "fp32.onnx", "stock": folder / "stock.onnx"}
    export_float(net, files["fp32"])
    row: dict[str, Any] = {"name": net.name, "threads": threads}
    try:
        export_stock(net, files["fp32"], files["stock"])
    except Exception as error:
        row["stock_error"] = str(error).splitlines()[0][:200]
        del files["stock"]
    converted: dict[int, nn.Module] = {}
    for stored, mac in BITS.items():
        converted[stored] = convert(net, mac)
        example = (net.batches[0],)
        for pack in (False, True):
            name = f"packed{stored}" if pack else f"int8_{stored}"
            files[name] = folder / f"{name}.onnx"
            zaq_onnx.export(
                converted[stored], example, files[name], pack=pack, calibration=net.batches
            )
    row["bytes"] = {name: path.stat().st_size for name, path in files.items()}
    for runtime in (ORT, OPENVINO):
        _under(runtime, net, files, row, repeats, threads)
    row["same_graph"] = {s: same_graph(files[f"int8_{s}"], files[f"packed{s}"]) for s in BITS}
    inside = Graph(optimized(files["packed5"]))
    row["layers"] = [len(integer_layers(inside)), len(float_layers(inside))]
    if net.images is not None and net.labels is not None:
        row["fp32_accuracy"] = accuracy(logits_of(net.model, net.images, 50), net.labels)
        row["converted_accuracy"] = {s: _top1(converted[s], net) for s in BITS}
    return row


@dataclass(frozen=True)
class Runtime:
    """How to load and to run a file.

    Attributes:
        name: Of the columns.
        load: From a file.
        run: On inputs.
    """

    name: str
    load: Callable[..., Any]
    run: Callable[..., Any]


ORT = Runtime("ort", ort_session, run_ort)
OPENVINO = Runtime("openvino", openvino_compiled, run_openvino)


def _under(
    runtime: Runtime,
    net: Network,
    files: dict[str, Path],
    row: dict[str, Any],
    repeats: int,
    threads: int,
) -> None:
    """Load times, latencies, outputs and accuracy under one runtime."""
    ready = {}
    for name, path in files.items():
        try:
            ready[name] = runtime.load(path, threads=threads)
        except ValueError as error:
            row.setdefault(f"{runtime.name}_errors", {})[name] = str(error)[:200]
    loads = {n: partial(runtime.load, files[n], threads=threads) for n in ready}
    row[f"{runtime.name}_load"] = alternating(loads, 5, warm=False)
    outputs = {n: runtime.run(m, (net.batches[0],))[0] for n, m in ready.items()}
    row[f"{runtime.name}_same"] = {
        s: bool(np.array_equal(outputs[f"int8_{s}"], outputs[f"packed{s}"]))
        for s in BITS
        if f"packed{s}" in outputs and f"int8_{s}" in outputs
    }
    image = net.batches[0][:1].contiguous()
    runs = {n: partial(runtime.run, m, (image,)) for n, m in ready.items()}
    row[f"{runtime.name}_latency"] = alternating(runs, repeats)
    if net.labels is not None:
        row[f"{runtime.name}_accuracy"] = {
            s: _top1(partial(_first, runtime, ready[f"packed{s}"]), net)
            for s in BITS
            if f"packed{s}" in ready
        }


def _first(runtime: Runtime, model: Any, images: Tensor) -> Any:
    return runtime.run(model, (images,))[0]


@torch.no_grad()
def _top1(run: Callable[[Tensor], Any], net: Network) -> float:
    assert net.images is not None
    assert net.labels is not None
    parts = [torch.from_numpy(np.asarray(run(part))) for part in net.images.split(50)]
    return accuracy(torch.cat(parts), net.labels)


def done(path: Path) -> list[dict[str, Any]]:
    """Results of an earlier run."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def main() -> None:
    """Measures what is not measured yet, and writes the table after each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of real models and images")
    parser.add_argument("--models", nargs="*", help="networks; all by default")
    parser.add_argument("--repeats", type=int, default=31, help="counted runs of each latency")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="Markdown file to write, besides printing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    names = options.models or [*(DATA if options.data else ()), *TIMM]
    lines = options.out.with_suffix(".jsonl") if options.out else Path(tempfile.mkdtemp(), "rows")
    console = Console(stderr=True)
    for number, name in enumerate(names):
        if any(row["name"] == name for row in done(lines)):
            continue
        state = f"{name} ({number + 1} of {len(names)})"
        with console.status(state), tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            net = network(name, options.data)
            row = measure(net, Path(folder), options.repeats, options.threads)
            row["seconds"] = round(time.perf_counter() - begin, 1)
        with lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        console.print(f"{name}: {row['seconds']} s")
        with suppress(AttributeError):
            options.out.write_text(tables(done(lines)))
    print(tables(done(lines)))


if __name__ == "__main__":
    main()
