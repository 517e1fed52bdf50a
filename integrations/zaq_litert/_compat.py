"""Every private name and undocumented habit of LiteRT that this package leans on.

``tests/integrations/zaq_litert/test_host_facts.py`` pins each of them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import litert_torch
from litert_torch._convert.fx_passes import OptimizeLayoutTransposesPass
from litert_torch.quantize.pt2e_quantizer import (
    PT2EQuantizer,
    get_symmetric_quantization_config,
)
from litert_torch.quantize.quant_config import QuantConfig

__all__ = ["convert", "operators", "static", "stock_quantizer"]


def stock_quantizer() -> Any:
    """The tool's own, as its documentation has it: int8, a scale per channel."""
    return PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def static() -> Any:
    """What tells the converter that a graph's quantization is static.

    Without it the file is float32: larger and slower than the float model's, with the same answers.
    The quantizer in it is not used.
    """
    return QuantConfig(pt2e_quantizer=stock_quantizer())


def convert(model: Any, example: tuple[Any, ...], quantized: bool) -> bytes:
    """A `.tflite` file's bytes."""
    with quiet(), layouts_stay_known():
        options = {"quant_config": static()} if quantized else {}
        program = litert_torch.convert(model, example, **options)
        return bytes(program.model_content())


def operators(interpreter: Any) -> list[dict[str, Any]]:
    """Name, inputs and outputs of every operator of an interpreter's graph."""
    return list(interpreter._get_ops_details())


@contextlib.contextmanager
def layouts_stay_known() -> Iterator[None]:
    """Where the converter turns a value around for one reader, others still know how it lies.

    It overwrites the mark that says so; of two paddings of one quantized value, the second one is
    turned around twice then, and its layer gets rows for channels.
    """
    owner = OptimizeLayoutTransposesPass
    before = owner.insert_t_q_dq

    def insert(self: Any, graph: Any, values: Any, *rest: Any) -> Any:
        meta = values.meta
        made = before(self, graph, values, *rest)
        values.meta = meta
        return made

    owner.insert_t_q_dq = insert
    try:
        yield
    finally:
        owner.insert_t_q_dq = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """It tells its stages, whoever listens."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
