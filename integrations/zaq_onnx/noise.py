"""Inputs for a file that comes without any."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper

from zaq_onnx.graph import Array


def noise_for(model: ModelProto) -> list[Array]:
    """Normal noise for inputs of floats, zeros for others; open dimensions are one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    generator, inputs = np.random.default_rng(0), []
    for one in model.graph.input:
        if one.name in constants:
            continue
        tensor = one.type.tensor_type
        shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floating = np.issubdtype(dtype, np.floating)
        value = generator.standard_normal(shape) if floating else np.zeros(shape)
        inputs.append(value.astype(dtype))
    return inputs
