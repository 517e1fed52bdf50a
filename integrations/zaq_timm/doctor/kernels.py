"""Whether int8 kernels add products exactly here: measured in each runtime, not from a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

EXACT, SATURATES, UNKNOWN = "exact", "saturates", "not measured"

ADVICE = {
    "torch": "zaq_fx.prepare(..., activations=7, input_bits=7), or PWLQQuantizer(..., "
    "activations=7, input_bits=7) in PT2E",
    "onnxruntime": "zaq_onnx.export(..., reduce_range=True)",
    "openvino": "zaq_onnx.export(..., reduce_range=True)",
}
"""Runtime to the setting with which its sums cannot saturate."""


@dataclass(frozen=True)
class Kernels:
    """A runtime's int8 kernels.

    Attributes:
        runtime: whose they are.
        answer: one of `EXACT`, `SATURATES`, `UNKNOWN`.
        reason: why nothing was measured.
    """

    runtime: str
    answer: str
    reason: str = ""

    @property
    def advice(self) -> str | None:
        """The safe setting, where one is needed."""
        return ADVICE[self.runtime] if self.answer == SATURATES else None


def measure_kernels() -> list[Kernels]:
    """What the kernels of every runtime do with two products that exceed 16 bits."""
    return [measure(runtime) for runtime in ADVICE]


def measure(runtime: str) -> Kernels:
    """What one runtime's kernels do; a key of `ADVICE`."""
    try:
        if runtime != "torch":
            import_module(runtime)
        saturated = _probe(runtime)()
    except (ImportError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Kernels(runtime, UNKNOWN, lines[0])
    return Kernels(runtime, SATURATES if saturated else EXACT)


def _probe(runtime: str) -> Callable[[], bool]:
    if runtime == "torch":
        from zaq_fx.checking import kernels_saturate

        return kernels_saturate
    from zaq_onnx.runtimes import saturates as of_runtime

    return lambda: of_runtime(runtime)


def warning(runtime: str) -> str | None:
    """One sentence where a runtime's kernels saturate here; None where they do not."""
    kernels = measure(runtime)
    if kernels.advice is None:
        return None
    return (
        f"int8 kernels of {runtime} saturate on this processor (they add two products in 16 bits); "
        f"exact: {kernels.advice}"
    )
