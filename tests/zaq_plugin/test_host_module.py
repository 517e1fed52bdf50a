"""What all observers and fake-quantizers share: keeping the compiler out without importing it."""

import subprocess
import sys

import torch
from torch import Tensor, nn

from zaq_plugin._host_module import outside_graphs


class Watcher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.compiling: list[bool] = []

    @outside_graphs
    def watch(self, x: Tensor, *, factor: float = 1.0) -> Tensor:
        """Looks at values, which no graph could."""
        self.compiling.append(torch.compiler.is_compiling())
        self.seen.append(float(x.sum()) * factor)
        return x + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.watch(x * 2, factor=3.0) * 2


def test_the_function_is_the_same_outside_a_graph() -> None:
    module = Watcher()
    assert module(torch.ones(2)).tolist() == [6.0, 6.0]
    assert module.seen == [12.0]
    assert Watcher.watch.__doc__ == "Looks at values, which no graph could."


def test_compiled_code_steps_out_of_its_graph() -> None:
    torch.compiler.reset()
    module = Watcher()
    compiled = torch.compile(module, backend="aot_eager")
    for value in (1.0, 2.0, 3.0):
        assert compiled(torch.full((2,), value)).tolist() == [4 * value + 2] * 2
    assert module.seen == [12.0, 24.0, 36.0]
    assert module.compiling == [False] * 3


def test_decorating_does_not_import_the_compiler() -> None:
    code = "import sys, zaq_plugin.observers; print('torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False\n"
