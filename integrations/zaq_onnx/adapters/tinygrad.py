"""tinygrad's ONNX runner, on the processor."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from typing import Any

from zaq_onnx.adapters.adapter import Adapter, Array, version_of
from zaq_onnx.adapters.stock import FLOATING, INTEGER, written_layers


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
