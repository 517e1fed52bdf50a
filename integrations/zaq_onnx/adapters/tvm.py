"""Apache TVM, by its Relax importer and its compiler for the processor."""

from __future__ import annotations

from collections import Counter
from typing import Any

from zaq_onnx.adapters.adapter import Adapter, Array, version_of


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
