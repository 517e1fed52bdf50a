"""Making the files whose sizes and times `benchmarks.deploy` reports, and comparing them.

Every network is exported in float, by ONNX Runtime's own ``quantize_static`` (stock int8, with the
options that its documentation recommends for x86), and by ``zaq_onnx`` from torchao's converted
model, as int8 and packed. On processors without VNNI both have a reduced range of weights. What
needs no quiet machine is measured here, too: sizes, whether outputs and optimized graphs are equal,
accuracy. Each network has a folder with its files, an image, and ``facts.json``, which is written
last.

    python -m benchmarks.deploy.prepare --work /tmp/deploy --data ../data
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console
from torch import Tensor, nn

import zaq_onnx
from benchmarks.data.tasks import accuracy, logits_of
from benchmarks.deploy.networks import (
    BITS,
    DATA,
    OPSET,
    RUNTIMES,
    TIMM,
    Facts,
    Network,
    Runtime,
    convert,
    facts_of,
    network,
)
from benchmarks.rows import command_line
from zaq_onnx.graph import Graph
from zaq_onnx.inspection import float_layers, integer_layers
from zaq_onnx.runtimes import optimized, ort_session, saturates

# ---- Accuracy ------------------------------------------------------------------------------------


def accuracies(
    net: Network,
    converted: dict[int, nn.Module],
    files: dict[str, Path],
    folder: Path,
    threads: int,
) -> Facts:
    """Top-1 of everything, also of files whose weights have their whole range."""
    assert net.images is not None
    assert net.labels is not None
    facts: Facts = {
        "images": len(net.labels),
        "fp32_accuracy": accuracy(logits_of(net.model, net.images, 50), net.labels),
        "converted_accuracy": {s: _top1(converted[s], net) for s in BITS},
    }
    whole = {s: folder / f"whole{s}.onnx" for s in BITS}
    for stored, path in whole.items():
        example = (net.batches[0],)
        zaq_onnx.export(converted[stored], example, path, pack=False, calibration=net.batches)
    operators = partial(ort_session, optimize=False, threads=threads)
    facts["operators_accuracy"] = {
        s: _top1(partial(_first, RUNTIMES[0], operators(files[f"int8_{s}"])), net) for s in BITS
    }
    for runtime in RUNTIMES:
        shown = {f"{runtime.name}_accuracy": {s: files[f"packed{s}"] for s in BITS}}
        shown[f"{runtime.name}_whole_accuracy"] = whole
        shown[f"{runtime.name}_stock_accuracy"] = {0: files["stock"]} if "stock" in files else {}
        for key, paths in shown.items():
            facts[key] = {}
            for stored, path in paths.items():
                try:
                    model = runtime.load(path, threads=threads)
                    facts[key][stored] = _top1(partial(_first, runtime, model), net)
                except (RuntimeError, ValueError):
                    continue
    return facts


def _first(runtime: Runtime, model: Any, images: Tensor) -> Any:
    return runtime.run(model, (images,))[0]


@torch.no_grad()
def _top1(run: Callable[[Tensor], Any], net: Network) -> float:
    assert net.images is not None
    assert net.labels is not None
    parts = [torch.from_numpy(np.asarray(run(part))) for part in net.images.split(50)]
    return accuracy(torch.cat(parts), net.labels)


# ---- Files, and comparing them -------------------------------------------------------------------

NEEDS = """Needs onnxruntime and openvino; --data DIR for the real networks. Takes some minutes a
network."""


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


def export_stock(net: Network, source: Path, path: Path, reduce: bool) -> None:
    """ONNX Runtime's own quantization, as its documentation recommends for x86.

    Pre-processed, QDQ, activations U8, weights S8 per channel; seven bits of weights where the
    processor has no VNNI.
    """
    ready = path.with_suffix(".ready.onnx")
    quant_pre_process(source, ready)
    name = onnx.load(ready).graph.input[0].name
    quantize_static(
        ready,
        path,
        _Reader(name, net.batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    ready.unlink()


def same_graph(first: Path, second: Path) -> bool:
    """Whether ONNX Runtime makes the same graph of two files: operators, attributes, constants."""
    both = []
    for path in (first, second):
        graph = optimized(path).graph
        constants = {t.name: bytes(t.raw_data) or t.SerializeToString() for t in graph.initializer}
        both.append(
            [
                (
                    node.op_type,
                    [constants.get(n, b"?") for n in node.input],
                    [a.SerializeToString() for a in node.attribute],
                )
                for node in graph.node
            ]
        )
    return both[0] == both[1]


def prepare(net: Network, folder: Path, threads: int) -> Facts:
    """Make a network's files, and compare them."""
    reduce = saturates("onnxruntime")
    files = {"fp32": folder / "fp32.onnx", "stock": folder / "stock.onnx"}
    export_float(net, files["fp32"])
    facts: Facts = {"name": net.name, "reduced": reduce}
    try:
        export_stock(net, files["fp32"], files["stock"], reduce)
    except Exception as error:  # whatever it is, the row says so
        facts["stock_error"] = str(error).splitlines()[0][:200]
        files.pop("stock").unlink(missing_ok=True)
    converted: dict[int, nn.Module] = {}
    for stored, mac in BITS.items():
        converted[stored] = convert(net, mac)
        plain, packed = folder / f"int8_{stored}.onnx", folder / f"packed{stored}.onnx"
        example = (net.batches[0],)
        zaq_onnx.export(
            converted[stored], example, packed, calibration=net.batches, reduce_range=reduce
        )
        zaq_onnx.unpack(packed, plain)
        files |= {plain.stem: plain, packed.stem: packed}
    np.save(folder / "image.npy", net.batches[0][:1].numpy())
    facts["bytes"] = {name: path.stat().st_size for name, path in files.items()}
    for runtime in RUNTIMES:
        _compare(runtime, net, files, facts, threads)
    facts["same_graph"] = {s: same_graph(files[f"int8_{s}"], files[f"packed{s}"]) for s in BITS}
    inside = Graph(optimized(files["packed5"]))
    facts["layers"] = [len(integer_layers(inside)), len(float_layers(inside))]
    if net.images is not None:
        facts |= accuracies(net, converted, files, folder, threads)
    return facts


FORMS = ("int8_", "packed")


def _compare(
    runtime: Runtime, net: Network, files: dict[str, Path], facts: Facts, threads: int
) -> None:
    """Whether packed files give the outputs of int8 files."""
    same = {}
    for stored in BITS:
        try:
            models = [runtime.load(files[f"{k}{stored}"], threads=threads) for k in FORMS]
        except ValueError as error:
            facts.setdefault(f"{runtime.name}_errors", {})[str(stored)] = str(error)[:200]
            continue
        first, second = (runtime.run(m, (net.batches[0],))[0] for m in models)
        same[stored] = bool(np.array_equal(first, second))
    facts[f"{runtime.name}_same"] = same


def main() -> None:
    """Prepares what is not prepared yet."""
    parser = command_line(__doc__, NEEDS)
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
