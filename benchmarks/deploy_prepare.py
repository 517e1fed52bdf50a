"""Making the files whose sizes and times `benchmarks/deploy.py` reports, and comparing them.

Every network is exported in float, by ONNX Runtime's own ``quantize_static`` (stock int8), and by
``zaq_onnx`` from torchao's converted model, as int8 and packed. What needs no quiet machine is
measured here, too: sizes, whether outputs and optimized graphs are equal, accuracy. Each network
has a folder with its files, an image, and ``facts.json``, which is written last.

    python benchmarks/deploy_prepare.py --work /tmp/deploy --data ../data
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
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
from zaq_onnx.graph import Graph
from zaq_onnx.inspecting import float_layers, integer_layers
from zaq_onnx.runtimes import openvino_compiled, optimized, ort_session, run_openvino, run_ort
from zaq_plugin import PWLQSpec

TIMM = ("resnet18", "resnet50", "mobilenetv2_100", "efficientnet_b0", "vit_tiny_patch16_224")
DATA = ("cifar10", "imagenet")
BITS = {4: 3, 5: 4}
"""MAC bits by stored bits."""

OPSET = 21
Facts = dict[str, Any]


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


RUNTIMES = (
    Runtime("ort", ort_session, run_ort),
    Runtime("openvino", openvino_compiled, run_openvino),
)


def prepare(net: Network, folder: Path, threads: int) -> Facts:
    """Make a network's files, and compare them."""
    files = {"fp32": folder / "fp32.onnx", "stock": folder / "stock.onnx"}
    export_float(net, files["fp32"])
    facts: Facts = {"name": net.name}
    try:
        export_stock(net, files["fp32"], files["stock"])
    except Exception as error:  # whatever it is, the row says so
        facts["stock_error"] = str(error).splitlines()[0][:200]
        files.pop("stock").unlink(missing_ok=True)
    converted: dict[int, nn.Module] = {}
    for stored, mac in BITS.items():
        converted[stored] = convert(net, mac)
        plain, packed = folder / f"int8_{stored}.onnx", folder / f"packed{stored}.onnx"
        example = (net.batches[0],)
        zaq_onnx.export(converted[stored], example, packed, calibration=net.batches)
        zaq_onnx.unpack(packed, plain)
        files |= {plain.stem: plain, packed.stem: packed}
    np.save(folder / "image.npy", net.batches[0][:1].numpy())
    facts["bytes"] = {name: path.stat().st_size for name, path in files.items()}
    for runtime in RUNTIMES:
        _compare(runtime, net, files, facts, threads)
    facts["same_graph"] = {s: same_graph(files[f"int8_{s}"], files[f"packed{s}"]) for s in BITS}
    inside = Graph(optimized(files["packed5"]))
    facts["layers"] = [len(integer_layers(inside)), len(float_layers(inside))]
    if net.images is not None and net.labels is not None:
        facts["fp32_accuracy"] = accuracy(logits_of(net.model, net.images, 50), net.labels)
        facts["converted_accuracy"] = {s: _top1(converted[s], net) for s in BITS}
    return facts


def _compare(
    runtime: Runtime, net: Network, files: dict[str, Path], facts: Facts, threads: int
) -> None:
    """Whether packed files give the outputs of int8 files, and their accuracy."""
    same, right = {}, {}
    for stored in BITS:
        try:
            models = [runtime.load(files[f"{k}{stored}"], threads=threads) for k in FORMS]
        except ValueError as error:
            facts.setdefault(f"{runtime.name}_errors", {})[str(stored)] = str(error)[:200]
            continue
        first, second = (runtime.run(m, (net.batches[0],))[0] for m in models)
        same[stored] = bool(np.array_equal(first, second))
        if net.labels is not None:
            right[stored] = _top1(partial(_first, runtime, models[1]), net)
    facts[f"{runtime.name}_same"] = same
    if right:
        facts[f"{runtime.name}_accuracy"] = right


FORMS = ("int8_", "packed")


def _first(runtime: Runtime, model: Any, images: Tensor) -> Any:
    return runtime.run(model, (images,))[0]


@torch.no_grad()
def _top1(run: Callable[[Tensor], Any], net: Network) -> float:
    assert net.images is not None
    assert net.labels is not None
    parts = [torch.from_numpy(np.asarray(run(part))) for part in net.images.split(50)]
    return accuracy(torch.cat(parts), net.labels)


def facts_of(folder: Path) -> Facts | None:
    """What is known of a network that was prepared."""
    path = folder / "facts.json"
    found: Facts | None = json.loads(path.read_text()) if path.exists() else None
    return found


def main() -> None:
    """Prepares what is not prepared yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the files")
    parser.add_argument("--data", type=Path, help="folder of real models and images")
    parser.add_argument("--models", nargs="*", help="networks; all by default")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    names = options.models or [*(DATA if options.data else ()), *TIMM]
    console = Console(stderr=True)
    for number, name in enumerate(names):
        folder = options.work / name
        folder.mkdir(parents=True, exist_ok=True)
        if facts_of(folder) is not None:
            continue
        with console.status(f"{name} ({number + 1} of {len(names)})"):
            begin = time.perf_counter()
            facts = prepare(network(name, options.data), folder, options.threads)
        (folder / "facts.json").write_text(json.dumps(facts))
        console.print(f"{name}: {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
