"""Every private name and undocumented habit of ExecuTorch that this package leans on.

``tests/integrations/zaq_executorch/test_host_facts.py`` pins each of them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = logging.getLogger()
_HANDLERS, _LEVEL = list(_ROOT.handlers), _ROOT.level

import executorch.kernels.quantized  # noqa: E402, F401  (its import registers operators to write)
from executorch.backends.xnnpack import serialization  # noqa: E402
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (  # noqa: E402
    XNNHeader,
)
from executorch.exir import schema  # noqa: E402
from executorch.exir._serialize import _flatbuffer, _program  # noqa: E402
from executorch.extension.pybindings.portable_lib import (  # noqa: E402
    _unsafe_reset_threadpool,
)

# Its partitioner calls logging.basicConfig when it is imported: the user's logging stays as it was.
importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
_ROOT.handlers[:] = _HANDLERS
_ROOT.setLevel(_LEVEL)

KernelCall, TensorValue = schema.KernelCall, schema.Tensor
"""Instructions of a program that run an operator, and values that are tensors."""
reset_threads: Any = _unsafe_reset_threadpool
"""Gives the runtime's kernels so many threads, in the whole process."""
BACKEND = "XnnpackBackend"
SMALL_BATCH = 16
"""torch asks whether a convolution's batch has so many samples, and the example's answer becomes a
bound: with a smaller example the file takes 15 at most, whatever was said. A largest batch of just
so many would leave one size, of which XNNPACK makes a constant."""
INT8 = ("xnn_datatype_qint8", "xnn_datatype_qcint8")
DYNAMIC = 1
"""`TensorShapeDynamism.DYNAMIC_BOUND`."""


@dataclass(frozen=True)
class Delegate:
    """One XNNPACK graph of a file: its description, and the constants by index."""

    graph: dict[str, Any]
    constants: list[bytes]


def parse_program(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """The program of a file, and what its delegates have stored by name.

    Raises:
        ValueError: the bytes are no program.
    """
    if data[4:6] != b"ET":
        raise ValueError("it does not begin as an ExecuTorch program does.")
    try:
        file = _program.deserialize_pte_binary(data)
    except Exception as error:  # of whatever class its parsers raise
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"its program cannot be read: {text}") from error
    named: dict[str, bytes] = {}
    if file.named_data is not None:
        for key, entry in file.named_data.pte_data.items():
            named[key] = _bytes(file.named_data.buffers[entry.buffer_index])
    return file.program, named


def _bytes(buffer: Any) -> bytes:
    return (
        bytes(buffer) if isinstance(buffer, bytes | bytearray | memoryview) else buffer.to_bytes()
    )


def delegates(program: Any, named: dict[str, bytes]) -> Iterator[Delegate]:
    """The XNNPACK graphs of a program."""
    for plan in program.execution_plan:
        for delegate in plan.delegates:
            if delegate.id == BACKEND:
                data = bytes(program.backend_delegate_data[delegate.processed.index].data)
                yield _delegate(data, named)


def _delegate(data: bytes, named: dict[str, bytes]) -> Delegate:
    header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
    end = header.flatbuffer_offset + header.flatbuffer_size
    graph = _decompiled(data[header.flatbuffer_offset : end])
    constants = []
    for place in graph["constant_data"]:
        key = place.get("named_key") or ""
        begin = header.constant_data_offset + int(place["offset"])
        constants.append(named[key] if key else data[begin : begin + int(place["size"])])
    return Delegate(graph, constants)


def _decompiled(data: bytes) -> dict[str, Any]:
    schema = Path(serialization.__path__[0], "schema.fbs").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        schema_path, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema_path.write_bytes(schema)
        binary.write_bytes(data)
        _flatbuffer._flatc_decompile(folder, str(schema_path), str(binary), ["--raw-binary"])
        text = Path(folder, "graph.json").read_text()
        # flatc writes inf, Python reads Infinity.
        graph: dict[str, Any] = json.loads(re.sub(r":\s*(-?)inf\b", r": \1Infinity", text))
        return graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Its passes log about their own affairs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
