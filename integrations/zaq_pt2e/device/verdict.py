"""What `verify` of a device's integration found, and the comparison of outputs in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq_pt2e.device.tolerance import Run, largest, run_graph, tolerance


@dataclass
class DeviceVerification:
    """What was found in a file, and how it ran.

    Attributes:
        path: The file.
        runtime: Who ran it.
        integer_layers: Convolutions and linear layers with int8 weights on int8 kernels.
        float_layers: Those that run in float.
        operators: How many of each operator the delegate (or the interpreter) runs.
        outside: Operators outside the delegate.
        weights: How many of the model's int8 weights are in the file, bit for bit.
        batch: The largest batch that the file was run with; its bound, if it takes any size up to
            one.
        dynamic: Whether it takes smaller batches, too.
        tolerance: Largest difference of an output that counts as equal.
        error: Largest difference of an output that was seen.
        mean_error: Mean difference of the outputs.
        agreement: Share of samples with the same top class in the first output.
        problems: What is wrong; empty if all is well.
        remarks: What a user should know, though it is not wrong.
    """

    path: str
    runtime: str
    integer_layers: int = 0
    float_layers: int = 0
    operators: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    weights: int = 0
    batch: int = 1
    dynamic: bool = False
    tolerance: float = 0.0
    error: float = 0.0
    mean_error: float = 0.0
    agreement: float = 1.0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def require(self) -> DeviceVerification:
        """Itself, if all is well.

        Raises:
            ValueError: the problems.
        """
        if self.problems:
            raise ValueError(str(self))
        return self

    def compare(
        self,
        model: GraphModule,
        run: Run,
        inputs: tuple[Tensor, ...],
        size: int,
        how: str = "",
    ) -> None:
        """Run inputs in torch and in the file, so many samples at a time, and keep the worst."""
        count = len(inputs[0])
        starts = [min(start, count - size) for start in range(0, count, size)]
        parts = [tuple(x[start : start + size] for x in inputs) for start in starts]
        expected = _joined([run_graph(model, part) for part in parts])
        outputs = _joined([run(part) for part in parts])
        shapes = [tuple(x.shape) for x in outputs], [tuple(x.shape) for x in expected]
        if shapes[0] != shapes[1]:
            self.problems.append(f"outputs of shapes {shapes[0]}; expected {shapes[1]}.")
            return
        self.tolerance = max([self.tolerance, *(tolerance(model, part) for part in parts)])
        error = largest(outputs, expected)
        self.error = max(self.error, error)
        apart = [
            float((a.double() - b.double()).abs().mean())
            for a, b in zip(outputs, expected, strict=True)
        ]
        self.mean_error = max([self.mean_error, *apart])
        first, right = outputs[0], expected[0]
        if right.dim() >= 2 and right.shape[1] > 1:
            same = float((first.argmax(1) == right.argmax(1)).float().mean())
            self.agreement = min(self.agreement, same)
        if not error <= self.tolerance * (1 + 1e-6) + 1e-6:
            self.problems.append(
                f"{how or f'with batches of {size}'} an output differs by {error:.3g} from the "
                f"model's, more than {self.tolerance:.3g}."
            )

    def __str__(self) -> str:
        sizes = f"up to {self.batch}" if self.dynamic else f"of {self.batch}"
        lines = [
            f"{self.path}: {'OK' if self.ok else 'NOT OK'} under {self.runtime}, batches {sizes}.",
            f"  {self.integer_layers} layers in integers, {self.float_layers} in float; "
            f"{self.weights} weights bit for bit",
            f"  largest difference {self.error:.3g} (allowed {self.tolerance:.3g}), mean "
            f"{self.mean_error:.2g}; top class equal in {100 * self.agreement:.1f} %",
            "  operators: " + _counted(self.operators),
            "  outside the delegate: " + (_counted(self.outside) or "none"),
        ]
        lines += [f"  problem: {text}" for text in self.problems]
        lines += [f"  remark: {text}" for text in self.remarks]
        return "\n".join(lines)


def _joined(runs: list[list[Tensor]]) -> list[Tensor]:
    return [
        torch.cat(outputs) if outputs[0].dim() else outputs[0]
        for outputs in zip(*runs, strict=True)
    ]


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(names.items()))
