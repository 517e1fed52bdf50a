"""OpenCV's `dnn` module, by either of its engines."""

from __future__ import annotations

from collections import Counter
from typing import Any

from zaq_onnx.adapters.adapter import Adapter, Array, version_of

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
