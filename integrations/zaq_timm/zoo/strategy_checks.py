"""Which of `zaq_plugin.strategies` a run can do, by the names that its settings give."""

from __future__ import annotations

from zaq_plugin.strategies import Strategy, compose

SIMULATED = "simulated"


def check_strategy(name: str, host: str, exports: tuple[str, ...], budget: str) -> Strategy:
    """The strategy of that name.

    Args:
        name: One strategy, or several joined by ``+``.
        host: Who quantizes; ``auto`` simulates.
        exports: The kinds of files that are written beside the row.
        budget: Of the weights' mean width or size; empty for none.

    Raises:
        ValueError: It does not exist, needs real images, of which a run has none to give, or makes
            weights that the host's kernels or the export cannot hold.
    """
    strategy = compose(name)
    if strategy.data == "real":
        raise ValueError(
            f"strategy {name!r} needs real images, and a run makes its own (--eval "
            "images only ever measure); use zaq_plugin.strategies.apply in Python, or a strategy "
            "without real images, such as zaq."
        )
    converted = [kind for kind in exports if kind != "onnx"]
    if host == SIMULATED and converted:
        raise ValueError(
            f"export={converted[0]} needs a host's converted model, and host=simulated converts "
            "nothing; use host=pt2e, or export=onnx."
        )
    integers = bool(exports) or host not in ("auto", SIMULATED)
    for stage in strategy.stages if integers else ():
        if stage.several_tensors:
            raise ValueError(
                f"strategy {name!r} does not go with a host's kernels or an export: {stage.name} "
                "puts weights together from several tensors, which no int8 kernel multiplies by; "
                "leave host and export away, or use a strategy of one grid per channel, such as "
                "pwlq+gptq."
            )
    if budget and any(stage.name == "mixed-precision" for stage in strategy.stages):
        raise ValueError(
            f"strategy {name!r} chooses widths itself, and so does budget={budget}; leave one away."
        )
    return strategy
