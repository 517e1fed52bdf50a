"""Which of `zaq_plugin.strategies` a run can do, by the names that its settings give."""

from __future__ import annotations

from zaq_plugin.strategies import Strategy, compose

SEVERAL_TENSORS = ("second-tensor", "bit-allocation")
"""Stages that put a weight together from several tensors, which no int8 kernel multiplies by."""


def check_strategy(name: str, export: str, weights: str, stored_bits: float) -> Strategy:
    """The strategy of that name.

    Args:
        name: One strategy, or several joined by ``+``.
        export: What is written beside the row.
        weights: The weights' format, as the settings call it.
        stored_bits: Of one weight in that format.

    Raises:
        ValueError: It does not exist, needs real images, of which a run has none to give, or makes
            weights that the export asked for cannot hold.
    """
    strategy = compose(name)
    if strategy.data == "real":
        raise ValueError(
            f"strategy {name!r} needs real images, and a run makes its own (--eval "
            "images only ever measure); use zaq_plugin.strategies.apply in Python, or a strategy "
            "without real images, such as zaq."
        )
    if export == "none":
        return strategy
    if export != "onnx":
        raise ValueError(
            f"strategy does not go with export={export}, which needs a host's converted "
            "model; use export=onnx."
        )
    for stage in strategy.stages:
        if stage.name in SEVERAL_TENSORS:
            raise ValueError(
                f"strategy {name!r} does not go with export: {stage.name} puts "
                "weights together from several tensors, which no int8 kernel multiplies by; leave "
                "export away, or use a strategy of one grid per channel, such as pwlq+gptq."
            )
    if stored_bits > 7:
        raise ValueError(
            f"weights={weights} does not go with strategy and export: a strategy's 8-bit "
            "grids are asymmetric and do not fit int8; use uniform7 or fewer bits, or leave the "
            "strategy away: hosts have symmetric ones."
        )
    return strategy
