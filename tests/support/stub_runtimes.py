"""Runtimes that do what a test wants: answer, crash, hang, fail."""

import os
import signal
import time
from collections import Counter
from typing import Any

from zaq_onnx.adapters.adapter import Adapter
from zaq_onnx.adapters.stock import Reference


class Exact(Reference):
    """Right, by ONNX's reference; tells kernels that the test can recognise."""

    name, install = "exact", "pip install exact"
    integer, floating = ("Whole",), ("Whole", "Broken")
    modules = ()

    def kernels(self) -> Counter[str] | None:
        return Counter({"WholeConv": 4, "BrokenConv": 1, "Other": 7})


class Off(Reference):
    """A tenth too much."""

    name = "off"

    def run(self, inputs: list[Any]) -> list[Any]:
        return [output + 0.1 for output in super().run(inputs)]


class Slow(Reference):
    """Two tenths of a second a run, four for a file called float.onnx."""

    name = "slow"

    def load(self, path: str, inputs: list[Any], threads: int) -> None:
        super().load(path, inputs, threads)
        self.pause = 0.4 if path.endswith("float.onnx") else 0.2

    def run(self, inputs: list[Any]) -> list[Any]:
        time.sleep(self.pause)
        return super().run(inputs)


class _Broken(Adapter):
    def installed(self) -> str | None:
        return "1.0"

    def load(self, path: str, inputs: list[Any], threads: int) -> None:
        return

    def run(self, inputs: list[Any]) -> list[Any]:
        return []


class Crashes(_Broken):
    name, install = "crashes", "pip install crashes"

    def run(self, inputs: list[Any]) -> list[Any]:
        os.kill(os.getpid(), signal.SIGSEGV)
        return []


class Hangs(_Broken):
    name, install = "hangs", "pip install hangs"

    def load(self, path: str, inputs: list[Any], threads: int) -> None:
        time.sleep(600)


class Refuses(_Broken):
    name, install = "refuses", "pip install refuses"

    def load(self, path: str, inputs: list[Any], threads: int) -> None:
        causes = "Caused by:\n  0: rules\n  1: no such type: UINT4"
        raise ValueError(f"Failed analyse\n\n{causes}\n\nStack backtrace:\n x")


class Missing(_Broken):
    name, install = "missing", "pip install missing"

    def installed(self) -> str | None:
        return None


STUBS = {one.name: one for one in (Exact, Off, Slow, Crashes, Hangs, Refuses, Missing)}
