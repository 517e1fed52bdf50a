"""What `verify` found: one report per runtime, problems and remarks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class RuntimeReport:
    """One runtime's part of a `Verification`.

    Attributes:
        name: ``onnxruntime`` or ``openvino``.
        load_seconds: Time from the file to a session.
        error: Largest difference of an output from the reference.
        agreement: Share of samples with the same top class in the first output.
        kernels: How many of each kernel it runs.
        integer_layers: Convolutions and products with an integer weight that run in integers.
        float_layers: Those that run in float.
    """

    name: str
    load_seconds: float
    error: float
    agreement: float
    kernels: Counter[str]
    integer_layers: int
    float_layers: int


@dataclass
class Verification:
    """What `verify` found.

    Attributes:
        path: The file.
        layers: Number of layers with an int8 weight.
        packed: How many of these the file holds as codes.
        saturable: How many of these may add up to more than 16 bits, to which int8 kernels of
            processors without VNNI saturate.
        tolerance: Largest difference of an output that counts as equal, see `verify`.
        runtimes: One report for each.
        float_operations: Operators on floats between integers, in ONNX Runtime's optimized graph.
        problems: What is wrong; empty if all is well.
        remarks: What a user should know, though it is not wrong.
    """

    path: str
    layers: int = 0
    packed: int = 0
    saturable: int = 0
    tolerance: float = 0.0
    runtimes: list[RuntimeReport] = field(default_factory=list)
    float_operations: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def integer_only(self) -> bool:
        """Whether ONNX Runtime computes in integers from the first to the last layer."""
        return bool(self.runtimes) and not self.float_operations

    def require(self) -> Verification:
        """Itself, if all is well.

        Raises:
            ValueError: the problems.
        """
        if self.problems:
            raise ValueError(str(self))
        return self

    def __str__(self) -> str:
        verdict = "OK" if self.ok else "NOT OK"
        lines = [f"{self.path}: {verdict}. {self.layers} int8 layers, {self.packed} packed."]
        for report in self.runtimes:
            share = f"{report.error:.3g} (allowed {self.tolerance:.3g})"
            lines.append(
                f"  {report.name}: {report.integer_layers} layers in integers, "
                f"{report.float_layers} in float; largest difference {share}, top class equal in "
                f"{100 * report.agreement:.1f} %; loaded in {1000 * report.load_seconds:.0f} ms"
            )
            named = {k: n for k, n in report.kernels.items() if not k.startswith("Const")}
            lines.append("    " + ", ".join(f"{n} {k}" for k, n in sorted(named.items())))
        if self.runtimes and self.runtimes[0].name == "onnxruntime":
            count = len(self.float_operations)
            what = "integer-only" if not count else f"{count} float operators between integers"
            lines.append(f"  inference: {what}")
        lines += [f"  problem: {text}" for text in self.problems]
        lines += [f"  remark: {text}" for text in self.remarks]
        return "\n".join(lines)
