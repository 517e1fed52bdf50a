"""Float in- and outputs for a file whose tensors are int8 from end to end."""

from __future__ import annotations

import copy
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

_IDENTIFIER = b"TFL3"


def with_float_interface(data: bytes) -> bytes:
    """The same file with quantize operators in front of it and dequantize operators behind it."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    graph = model.subgraphs[0]
    operator = schema.BuiltinOperator
    moved: dict[int, int] = {}
    graph.inputs, graph.outputs = [*map(int, graph.inputs)], [*map(int, graph.outputs)]
    for places, kind in ((graph.inputs, operator.QUANTIZE), (graph.outputs, operator.DEQUANTIZE)):
        for position, index in enumerate(list(places)):
            tensor = graph.tensors[index]
            if tensor.type != schema.TensorType.INT8:
                continue
            outer = copy.copy(tensor)
            outer.type, outer.buffer, outer.quantization = schema.TensorType.FLOAT32, 0, None
            tensor.name = bytes(tensor.name) + b"_int8"
            graph.tensors.append(outer)
            new = len(graph.tensors) - 1
            moved[index] = new
            places[position] = new
            op = schema.OperatorT()
            op.opcodeIndex = _code(model, kind)
            entering = kind == operator.QUANTIZE
            op.inputs, op.outputs = ([new], [index]) if entering else ([index], [new])
            graph.operators.insert(0 if entering else len(graph.operators), op)
    for signature in model.signatureDefs or ():
        for entry in [*signature.inputs, *signature.outputs]:
            entry.tensorIndex = moved.get(int(entry.tensorIndex), entry.tensorIndex)
    builder = flatbuffers.Builder(len(data) + 4096)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _code(model: Any, kind: int) -> int:
    """The index of a builtin operator among the file's, which gets it if it has it not."""
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == kind:
            return index
    operator_code = schema.OperatorCodeT()
    operator_code.builtinCode, operator_code.deprecatedBuiltinCode, operator_code.version = (
        kind,
        min(kind, 127),
        1,
    )
    model.operatorCodes.append(operator_code)
    return len(model.operatorCodes) - 1
