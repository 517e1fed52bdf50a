"""ONNX Runtime's packages for JavaScript, under Node: native, and WebAssembly as in browsers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from zaq_onnx.adapters.adapter import Adapter, Array
from zaq_onnx.adapters.stock import FLOATING, INTEGER


class OnnxRuntimeNode(Adapter):
    """The native library, as npm has it. ``node.js`` answers a JSON line with a JSON line."""

    name, package = "onnxruntime-node", "onnxruntime-node"
    install = "ONNXRUNTIME_NODE_INSTALL=skip npm install onnxruntime-node"
    integer, floating = INTEGER, FLOATING
    tells = True
    process: subprocess.Popen[str] | None = None

    def folder(self) -> Path | None:
        """Where npm put the package."""
        places = [self.node_modules or "", *os.environ.get("NODE_PATH", "").split(os.pathsep)]
        paths = (Path(place, self.package) for place in places if place)
        return next((path for path in paths if (path / "package.json").is_file()), None)

    def installed(self) -> str | None:
        """See `Adapter`."""
        folder = self.folder()
        if folder is None or not shutil.which("node"):
            return None
        return str(json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"])

    def load(self, path: str, inputs: list[Array], threads: int) -> None:
        """See `Adapter`."""
        package = self.folder()
        assert package is not None  # it is installed
        self.place = tempfile.TemporaryDirectory()
        with as_file(files("zaq_onnx.adapters") / "node.js") as script:
            self.process = subprocess.Popen(
                ["node", str(script)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            self.optimized = Path(self.place.name, "optimized.onnx") if self.tells else None
            optimized = os.fspath(self.optimized) if self.optimized else None
            package_path = os.fspath(package.resolve())
            answer = self.ask(package=package_path, file=path, threads=threads, optimized=optimized)
            self.loaded_in = answer["seconds"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer.

        Raises:
            RuntimeError: what went wrong in the script.
        """
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None  # noqa: PT018
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            assert process.stderr is not None
            said = process.stderr.read().strip().splitlines()
            raise RuntimeError(said[-1] if said else f"node ended with {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `Adapter`."""
        answer = self.ask(inputs=self.written(inputs), out=self.place.name)
        return [
            np.fromfile(one["path"], one["type"]).reshape(one["shape"]) for one in answer["outputs"]
        ]

    def written(self, inputs: list[Array]) -> list[dict[str, Any]]:
        """Inputs as files of plain bytes."""
        arrays = []
        for i, value in enumerate(inputs):
            path = os.path.join(self.place.name, f"input{i}.bin")
            np.ascontiguousarray(value).tofile(path)
            arrays.append({"path": path, "type": value.dtype.name, "shape": list(value.shape)})
        return arrays

    def kernels(self) -> Counter[str] | None:
        """Nodes of the optimized graph; WebAssembly has no file system to write it to."""
        if self.optimized is None:
            return None
        import onnx

        return Counter(node.op_type for node in onnx.load(self.optimized).graph.node)

    def milliseconds(self, inputs: list[Array], seconds: float) -> float:
        """See `Adapter`; by Node's own clock."""
        return float(self.ask(inputs=self.written(inputs), seconds=seconds)["milliseconds"])

    def close(self) -> None:
        """See `Adapter`."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
            self.place.cleanup()


class OnnxRuntimeWeb(OnnxRuntimeNode):
    """WebAssembly, by Node's engine, which is Chromium's."""

    name, package = "onnxruntime-web", "onnxruntime-web"
    install = "npm install onnxruntime-web"
    tells = False
