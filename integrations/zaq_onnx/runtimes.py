"""Running a model under ONNX Runtime and OpenVINO, and looking at what they made of it."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from zaq_onnx._compat import LAYER, ORT_INTEGER, ORT_REQUANTIZER, PRECISION
from zaq_onnx.files import Path_, serialize
from zaq_onnx.graph import Array

_FATAL = 4
HEAVY = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose")
"""Float kernels of layers, as ONNX Runtime calls them."""


def ort_session(
    model: ModelProto | Path_,
    *,
    optimize: bool = True,
    layout: bool = True,
    threads: int = 1,
    save: Path_ | None = None,
    requantize: bool = True,
) -> Any:
    """A session on the CPU.

    Args:
        model: A model or a file.
        optimize: Let the runtime fuse operators; else every operator runs as it stands.
        layout: Let it choose channels-last kernels, too.
        threads: Threads within an operator.
        save: Where to write the optimized graph.
        requantize: Let it quantize float weights between quantized activations.

    Raises:
        ValueError: the runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    levels = onnxruntime.GraphOptimizationLevel
    if not optimize:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    elif not layout:
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
    if save is not None:
        options.optimized_model_filepath = os.fspath(save)
    source = serialize(model) if isinstance(model, ModelProto) else os.fspath(model)
    disabled = [] if requantize else [ORT_REQUANTIZER]
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except Exception as error:  # the runtime's errors share no base class
        text = str(error).strip().splitlines()[0]
        raise ValueError(f"ONNX Runtime refuses the model: {text}") from error


_KINDS = {"float": "float32", "double": "float64", "float16": "float16", "int64": "int64"}
"""numpy's names of what ONNX Runtime calls a tensor of."""


def feeds_of(session: Any, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, Array]:
    """Inputs by name.

    Raises:
        ValueError: their number, names, kinds or shapes are wrong.
    """
    names = [i.name for i in session.get_inputs()]
    if isinstance(inputs, Mapping):
        if set(names) != set(inputs):
            raise ValueError(
                f"the model takes inputs called {', '.join(names)}; got {', '.join(inputs)}."
            )
        return _checked(session, {name: as_array(inputs[name]) for name in names})
    if len(names) != len(inputs):
        raise ValueError(
            f"the model takes {len(names)} inputs ({', '.join(names)}); got {len(inputs)}."
        )
    return _checked(session, {name: as_array(x) for name, x in zip(names, inputs, strict=True)})


def _checked(session: Any, arrays: dict[str, Array]) -> dict[str, Array]:
    """Refuse what the session would refuse, in our own words."""
    for wanted in session.get_inputs():
        array = arrays[wanted.name]
        kind = _KINDS.get(wanted.type.removeprefix("tensor(").removesuffix(")"))
        fits = len(array.shape) == len(wanted.shape) and all(
            not isinstance(size, int) or size == own
            for size, own in zip(wanted.shape, array.shape, strict=True)
        )
        if not fits or (kind is not None and array.dtype != kind):
            sizes = ", ".join(map(str, wanted.shape))
            advice = "" if fits else "; pass samples of that shape"
            if kind is not None and array.dtype != kind:
                advice += f"; pass {kind} values, normalised as in training"
            raise ValueError(
                f"the model's input {wanted.name!r} is {kind or wanted.type} of shape ({sizes}); "
                f"got {array.dtype} of shape {array.shape}{advice}."
            )
    return arrays


def as_array(x: Any) -> Array:
    """A tensor or an array as an array."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def run_ort(session: Any, inputs: Sequence[Any]) -> list[Array]:
    """All outputs of a session."""
    outputs: list[Array] = session.run(None, feeds_of(session, inputs))
    return outputs


def optimized(model: ModelProto | Path_, *, layout: bool = True) -> ModelProto:
    """The graph that ONNX Runtime runs in place of a model.

    Args:
        model: A model or a file.
        layout: See `ort_session`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        ort_session(model, save=path, layout=layout)
        return onnx.load(path)


def kernels(graph: ModelProto) -> Counter[str]:
    """How many nodes of each kernel an optimized graph has."""
    return Counter(node.op_type for node in graph.graph.node)


def is_integer(node: NodeProto) -> bool:
    """Whether a node of an optimized graph computes in integers."""
    return node.op_type.startswith(ORT_INTEGER)


def openvino_compiled(model: ModelProto | Path_, threads: int = 1, *, convert: bool = False) -> Any:
    """A model compiled by OpenVINO for the CPU.

    Args:
        model: A model or a file.
        threads: Threads that it may use.
        convert: Read it by ``openvino.convert_model``, which folds constants, in place of
            ``Core.read_model``.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: it refuses the model.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError(
            "openvino is not installed. Install it with: pip install 'zaq_plugin[onnx]', or leave "
            "it out: runtimes=('onnxruntime',)."
        ) from error
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": str(threads),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # or machines with bfloat16 round what stays in float
    }
    read = openvino.convert_model if convert else core.read_model
    try:
        if isinstance(model, ModelProto):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.onnx")
                path.write_bytes(serialize(model))
                return core.compile_model(read(path), "CPU", settings)
        return core.compile_model(read(os.fspath(model)), "CPU", settings)
    except Exception as error:
        text = str(error).strip().splitlines()[0]
        raise ValueError(f"OpenVINO refuses the model: {text}") from error


def run_openvino(compiled: Any, inputs: Sequence[Any]) -> list[Array]:
    """All outputs of a compiled model."""
    outputs = compiled([as_array(x) for x in inputs])
    return [np.array(outputs[output]) for output in compiled.outputs]


def openvino_kernels(compiled: Any) -> Counter[str]:
    """``layer type, precision`` of what OpenVINO runs."""
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if LAYER in info and PRECISION in info:
            counts[f"{_text(info[LAYER])} {_text(info[PRECISION])}"] += 1
    return counts


def _text(value: Any) -> str:
    return str(value.astype(str) if hasattr(value, "astype") else value)


def noise_for(model: ModelProto) -> list[Array]:
    """Normal noise for inputs of floats, zeros for others; open dimensions are one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    generator, inputs = np.random.default_rng(0), []
    for one in model.graph.input:
        if one.name in constants:
            continue
        tensor = one.type.tensor_type
        shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floating = np.issubdtype(dtype, np.floating)
        value = generator.standard_normal(shape) if floating else np.zeros(shape)
        inputs.append(value.astype(dtype))
    return inputs


# ---- Do they add products of int8 exactly on this processor? -------------------------------------

ADVICE = (
    "this processor's int8 kernels add products in 16 bits, which saturate (it has no VNNI); "
    "export(..., reduce_range=True) makes weights with which they do not"
)
WARNING = (
    "layers may add up to more than 16 bits, which this processor's int8 kernels saturate to (it "
    "has no VNNI); export(..., reduce_range=True) makes weights with which they do not"
)
_CHANNELS, _SIDE = 64, 4


@cache
def saturates(runtime: str) -> bool:
    """Whether a runtime's int8 convolution saturates on this processor.

    Every activation is 255 and every weight 127, so that two products exceed 16 bits.

    Args:
        runtime: ``onnxruntime`` or ``openvino``.
    """
    x = np.full((1, _CHANNELS, _SIDE, _SIDE), 255, np.float32)
    if runtime == "onnxruntime":
        output = run_ort(ort_session(probe_model()), (x,))[0]
    else:
        output = run_openvino(openvino_compiled(probe_model()), (x,))[0]
    return bool(np.abs(output - 255).max() > 2)


def probe_model() -> ModelProto:
    """A convolution whose every output is 255, on a grid of whole numbers."""
    total = np.float32(127 * _CHANNELS)
    values: dict[str, Array] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "w": np.full((_CHANNELS, _CHANNELS, 1, 1), 127, np.int8),
        "scale": np.full(_CHANNELS, 1 / total, np.float32),
        "zeros": np.zeros(_CHANNELS, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zeros"], ["v"], axis=0),
        helper.make_node("Conv", ["d", "v"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "one", "zero"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "one", "zero"], ["y"]),
    ]
    shape = [1, _CHANNELS, _SIDE, _SIDE]
    graph = helper.make_graph(
        nodes,
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
