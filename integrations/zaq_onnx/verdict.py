"""What `verify` found: one report per runtime, problems and remarks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

RIGHT, WRONG, LOADED = "right", "wrong", "loads"
REFUSED, FAILED, ABSENT = "does not load", "fails", "not installed"
_RAN = (RIGHT, WRONG, LOADED)


@dataclass
class RuntimeReport:
    """One runtime's part of a `Verification`.

    Attributes:
        name: As in `zaq_onnx.ADAPTERS`.
        load_seconds: Time from the file to a session.
        error: Largest difference of an output from the reference.
        agreement: Share of samples with the same top class in the first output.
        kernels: How many of each kernel it runs; empty where it does not tell.
        integer_layers: Convolutions and products with an integer weight that run in integers.
        float_layers: Those that run in float.
        state: ``right``, ``wrong``, ``loads`` (nothing was run), ``does not load``, ``fails`` or
            ``not installed``.
        version: Of the runtime.
        message: Why it failed; the command that installs it, if it is missing.
        steps: `error` in 255ths of the range of the reference's outputs.
        milliseconds: The least latency, if it was timed.
        float_milliseconds: The same of the float file.
    """

    name: str
    load_seconds: float = 0.0
    error: float = 0.0
    agreement: float = 1.0
    kernels: Counter[str] = field(default_factory=Counter)
    integer_layers: int = 0
    float_layers: int = 0
    state: str = LOADED
    version: str = ""
    message: str = ""
    steps: float = 0.0
    milliseconds: float | None = None
    float_milliseconds: float | None = None

    @property
    def ran(self) -> bool:
        """Whether it loaded the file, and ran it if there was something to run on."""
        return self.state in _RAN

    @property
    def arithmetic(self) -> str:
        """What layers are multiplied in, in words."""
        if not self.integer_layers + self.float_layers:
            return "not told" if self.ran else ""
        if not self.float_layers:
            return "integer"
        if not self.integer_layers:
            return "float"
        return f"{self.integer_layers} integer, {self.float_layers} float"

    @property
    def ratio(self) -> float | None:
        """Latency as a multiple of the float file's in the same runtime."""
        if self.milliseconds is None or not self.float_milliseconds:
            return None
        return self.milliseconds / self.float_milliseconds


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
        ran = any(report.name == "onnxruntime" and report.ran for report in self.runtimes)
        return ran and not self.float_operations

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
            lines += self._lines(report)
        if any(report.name == "onnxruntime" and report.ran for report in self.runtimes):
            count = len(self.float_operations)
            what = "integer-only" if not count else f"{count} float operators between integers"
            lines.append(f"  inference: {what}")
        lines += [f"  problem: {text}" for text in self.problems]
        lines += [f"  remark: {text}" for text in self.remarks]
        return "\n".join(lines)

    def _lines(self, report: RuntimeReport) -> list[str]:
        if report.state == ABSENT:
            return [f"  {report.name}: not installed; {report.message}"]
        if not report.ran:
            return [f"  {report.name}: {report.state}: {report.message}"]
        share = f"{report.error:.3g} (allowed {self.tolerance:.3g})"
        named = {k: n for k, n in report.kernels.items() if not k.startswith("Const")}
        return [
            f"  {report.name}: {report.integer_layers} layers in integers, "
            f"{report.float_layers} in float; largest difference {share}, top class equal in "
            f"{100 * report.agreement:.1f} %; loaded in {1000 * report.load_seconds:.0f} ms",
            "    " + ", ".join(f"{n} {k}" for k, n in sorted(named.items())),
        ]
