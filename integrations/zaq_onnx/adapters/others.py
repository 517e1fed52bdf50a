"""Smaller runtimes: OpenCV's `dnn` module, tinygrad, tract, and Apache TVM."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from typing import Any

from zaq_onnx.adapters.adapter import Adapter, Array, version_of
from zaq_onnx.adapters.stock import FLOATING, INTEGER, written_layers

# ---- OpenCV --------------------------------------------------------------------------------------

PACKAGES = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless",
            "opencv-contrib-python")  # fmt: skip


class OpenCv(Adapter):
    """The engine that OpenCV takes by default, which is the new one from version 5 on."""

    name, install = "opencv", "pip install opencv-python-headless"
    integer = ("Conv2Int8", "ConvolutionInt8", "InnerProductInt8", "GemmInt8", "MatMulInt8")
    floating = ("Conv", "Gemm", "MatMul", "InnerProduct")
    modules = ("cv2", "onnx")
    engine = "ENGINE_NEW"

    def installed(self) -> str | None:
        """See `Adapter`."""
        return version_of("cv2", *PACKAGES)

    def load(self, path: str, inputs: list[Array], threads: int) -> None:
        """See `Adapter`."""
        import cv2
        import onnx

        cv2.setNumThreads(threads)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        engine = getattr(cv2.dnn, self.engine, None)
        self.net: Any = cv2.dnn.readNetFromONNX(path, *([] if engine is None else [engine]))
        graph = onnx.load(path).graph
        constants = {tensor.name for tensor in graph.initializer}
        self.inputs = [i.name for i in graph.input if i.name not in constants]
        self.outputs = [o.name for o in graph.output]

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `Adapter`."""
        for name, value in zip(self.inputs, inputs, strict=True):
            self.net.setInput(value, name)
        return list(self.net.forward(self.outputs))

    def kernels(self) -> Counter[str] | None:
        """Types of the net's layers."""
        return Counter(self.net.getLayer(name).type for name in self.net.getLayerNames())


class OpenCvClassic(OpenCv):
    """The engine of version 4, which version 5 has by name."""

    name, engine = "opencv-classic", "ENGINE_CLASSIC"


# ---- tinygrad ------------------------------------------------------------------------------------


class Tinygrad(Adapter):
    """Every operator of the file as it stands, compiled by clang; recorded, then replayed."""

    name, install = "tinygrad", "pip install tinygrad, and clang (apt-get install clang)"
    integer, floating = INTEGER, FLOATING

    def installed(self) -> str | None:
        """See `Adapter`."""
        return version_of("tinygrad", "tinygrad") if shutil.which("clang") else None

    def load(self, path: str, inputs: list[Array], threads: int) -> None:
        """See `Adapter`."""
        os.environ.setdefault("DEV", "CPU")
        from tinygrad import TinyJit
        from tinygrad.nn.onnx import OnnxRunner

        runner = OnnxRunner(path)
        names = list(runner.graph_inputs)

        def call(*tensors: Any) -> list[Any]:
            feeds = dict(zip(names, tensors, strict=True))
            return [output.realize() for output in runner(feeds).values()]

        self.call: Any = TinyJit(call)
        self.path = path

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `Adapter`."""
        from tinygrad import Tensor

        return [output.numpy() for output in self.call(*(Tensor(x).realize() for x in inputs))]

    def kernels(self) -> Counter[str] | None:
        """Layers as they stand in the file."""
        import onnx

        return written_layers(onnx.load(self.path))

    def milliseconds(self, inputs: list[Array], seconds: float) -> float:
        """See `Adapter`; the first two runs compile and record."""
        for _ in range(2):
            self.run(inputs)
        return super().milliseconds(inputs, seconds)


# ---- tract, the runtime in Rust ------------------------------------------------------------------


class Tract(Adapter):
    """A file is used with the shapes that it declares, its open batch included."""

    name, install = "tract", "pip install tract"
    integer = ("FMA(I", "FMA(U")
    floating = ("FMA(F",)
    modules = ("tract",)

    def installed(self) -> str | None:
        """See `Adapter`."""
        return version_of("tract", "tract")

    def load(self, path: str, inputs: list[Array], threads: int) -> None:
        """See `Adapter`."""
        import tract

        self.examples = inputs
        self.runnable: Any = tract.onnx().load(path).into_model().into_runnable()

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `Adapter`."""
        return [output.to_numpy() for output in self.runnable.run(inputs)]

    def kernels(self) -> Counter[str] | None:
        """Multiplying operators by the type they multiply, as its profile has it, and the rest."""
        nodes = json.loads(self.runnable.profile_json(self.examples))["nodes"]
        counts: Counter[str] = Counter()
        for node in nodes:
            products = [cost for cost in node.get("cost", {}) if cost.startswith("FMA")]
            multiplies = products and ("MatMul" in node["op_name"] or "Conv" in node["op_name"])
            counts[f"{products[0]} {node['op_name']}" if multiplies else node["op_name"]] += 1
        return counts


# ---- Apache TVM ----------------------------------------------------------------------------------


class Tvm(Adapter):
    """Compiled for the shapes of the inputs, without tuning."""

    name, install = "tvm", "pip install apache-tvm"
    modules = ("tvm.relax.frontend.onnx",)
    LAYERS = ("relax.nn.conv", "relax.matmul")

    def installed(self) -> str | None:
        """See `Adapter`."""
        return version_of("tvm", "apache-tvm")

    def load(self, path: str, inputs: list[Array], threads: int) -> None:
        """See `Adapter`."""
        import onnx
        import tvm
        from tvm.relax import VirtualMachine
        from tvm.relax.frontend.onnx import from_onnx

        model = onnx.load(path)
        constants = {tensor.name for tensor in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in constants]
        shapes = {name: list(x.shape) for name, x in zip(names, inputs, strict=True)}
        self.module: Any = from_onnx(model, shape_dict=shapes, keep_params_in_input=False)
        self.machine: Any = VirtualMachine(tvm.compile(self.module, target="llvm"), tvm.cpu())

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `Adapter`."""
        import tvm

        outputs = self.machine["main"](*(tvm.runtime.tensor(x) for x in inputs))
        return [one.numpy() for one in ([outputs] if hasattr(outputs, "numpy") else outputs)]

    def kernels(self) -> Counter[str] | None:
        """Relax operators with the type of their results."""
        from tvm import relax

        counts: Counter[str] = Counter()

        def count(expression: Any) -> None:
            if isinstance(expression, relax.Call):
                info = getattr(expression, "struct_info", None) or getattr(expression, "ty", None)
                operator = getattr(expression.op, "name", "call")
                counts[f"{operator} {getattr(info, 'dtype', '')}".strip()] += 1

        for function in self.module.functions.values():
            if isinstance(function, relax.Function):
                relax.analysis.post_order_visit(function, count)
        return counts

    def layers(self, kernels: Counter[str]) -> tuple[int, int]:
        """See `Adapter`."""
        layers = {name: n for name, n in kernels.items() if name.startswith(self.LAYERS)}
        whole = sum(n for name, n in layers.items() if "int" in name.split()[-1])
        return whole, sum(layers.values()) - whole
