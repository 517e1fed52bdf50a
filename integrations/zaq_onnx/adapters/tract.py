"""tract, the runtime in Rust."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from zaq_onnx.adapters.adapter import Adapter, Array, version_of


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
