"""ONNX Runtime, OpenVINO by either of its ways in, and ONNX's own reference."""

from __future__ import annotations

from collections import Counter
from typing import Any

from zaq_onnx.adapters.adapter import Adapter, Array, version_of

INTEGER = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "ConvInteger")
FLOATING = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def written_layers(model: Any) -> Counter[str]:
    """Operators of a model that multiply what was dequantized; all that multiply if none was."""
    dequantized = {o for n in model.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    layers = [node for node in model.graph.node if node.op_type in INTEGER + FLOATING]
    behind = [node for node in layers if dequantized.intersection(node.input)]
    return Counter(node.op_type for node in behind or layers)


class OnnxRuntime(Adapter):
    """The one that files are made for."""

    name, install = "onnxruntime", "pip install onnxruntime"
    integer, floating = INTEGER, FLOATING
    modules = ("zaq_onnx.runtimes",)

    def installed(self) -> str | None:
        """See `Adapter`."""
        return version_of("onnxruntime", "onnxruntime", "onnxruntime-gpu", "ort-nightly")

    def load(self, path: str, inputs: list[Array], threads: int) -> None:
        """See `Adapter`."""
        from zaq_onnx.runtimes import ort_session

        self.path, self.session = path, ort_session(path, threads=threads)

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `Adapter`."""
        from zaq_onnx.runtimes import run_ort

        return run_ort(self.session, inputs)

    def kernels(self) -> Counter[str] | None:
        """Nodes of the optimized graph."""
        from zaq_onnx.runtimes import kernels, optimized

        return kernels(optimized(self.path))


class OpenVino(Adapter):
    """By ``Core.read_model``, which keeps most of the file as it is."""

    name, install = "openvino", "pip install openvino"
    modules = ("openvino", "zaq_onnx.runtimes")
    convert = False
    LAYERS = ("Convolution", "FullyConnected", "Deconvolution")

    def installed(self) -> str | None:
        """See `Adapter`."""
        return version_of("openvino", "openvino")

    def load(self, path: str, inputs: list[Array], threads: int) -> None:
        """See `Adapter`."""
        from zaq_onnx.runtimes import openvino_compiled

        self.compiled: Any = openvino_compiled(path, threads, convert=self.convert)

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `Adapter`."""
        from zaq_onnx.runtimes import run_openvino

        return run_openvino(self.compiled, inputs)

    def kernels(self) -> Counter[str] | None:
        """Layer types with their precisions."""
        from zaq_onnx.runtimes import openvino_kernels

        return openvino_kernels(self.compiled)

    def layers(self, kernels: Counter[str]) -> tuple[int, int]:
        """See `Adapter`."""
        layers = {k: n for k, n in kernels.items() if k.split()[0] in self.LAYERS}
        whole = sum(n for k, n in layers.items() if k.endswith((" i8", " u8")))
        return whole, sum(layers.values()) - whole


class OpenVinoConverted(OpenVino):
    """By ``openvino.convert_model``, which folds more: what an IR is saved from."""

    name, convert = "openvino-convert", True


class Reference(Adapter):
    """ONNX's own evaluator: the file's operators one by one, in NumPy."""

    name, install = "onnx.reference", "pip install onnx"
    integer, floating = INTEGER, FLOATING
    modules = ("onnx.reference",)

    def installed(self) -> str | None:
        """See `Adapter`."""
        return version_of("onnx", "onnx")

    def load(self, path: str, inputs: list[Array], threads: int) -> None:
        """See `Adapter`."""
        from onnx.reference import ReferenceEvaluator

        self.evaluator: Any = ReferenceEvaluator(path)

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `Adapter`."""
        feeds = dict(zip(self.evaluator.input_names, inputs, strict=True))
        outputs: list[Array] = self.evaluator.run(None, feeds)
        return outputs

    def kernels(self) -> Counter[str] | None:
        """Layers as they stand in the file."""
        return written_layers(self.evaluator.proto_)
