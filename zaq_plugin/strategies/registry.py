"""Every strategy, from the floor up, and the parts that compositions are made of."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from zaq_plugin.strategies.aciq import ACIQ
from zaq_plugin.strategies.correction import CorrectBias
from zaq_plugin.strategies.dfq import DFQ, Equalise
from zaq_plugin.strategies.images import Distilled, Noise, Real
from zaq_plugin.strategies.lbq import LBQ
from zaq_plugin.strategies.omse import OMSE
from zaq_plugin.strategies.pwlq import PWLQ
from zaq_plugin.strategies.rq import RQ
from zaq_plugin.strategies.stage import ImageStage, Stage, Strategy
from zaq_plugin.strategies.zaq import ZAQ, ZAQ_PAPER

_METHODS = (RQ, OMSE, LBQ, ACIQ, DFQ, PWLQ, ZAQ_PAPER, ZAQ)


def _part(stage: Stage, title: str, paper: str = "") -> Strategy:
    data = stage.data if isinstance(stage, ImageStage) else "none"
    real = data == "real"
    return Strategy(stage.name, title, paper, data, False, (stage,), real, component=True)


_PARTS = (
    _part(Real(), "calibrate with the real images of the request"),
    _part(Distilled(), "calibrate with images distilled from BatchNorm statistics"),
    _part(Noise(), "calibrate with Gaussian noise"),
    _part(Equalise(), "cross-layer equalisation", "Nagel et al., ICCV 2019"),
    _part(CorrectBias(), "bias correction from activations", "Nagel et al., ICCV 2019"),
)

STRATEGIES: Mapping[str, Strategy] = MappingProxyType({s.name: s for s in _METHODS})
"""Name to strategy, from the floor up."""

PARTS: Mapping[str, Strategy] = MappingProxyType({s.name: s for s in _PARTS})
"""Name to part: what a composition such as ``rq+real`` may add to a strategy."""


def find(name: str) -> Strategy:
    """A strategy or a part by name.

    Raises:
        ValueError: If there is none; the text names what may have been meant.
    """
    known = {**STRATEGIES, **PARTS}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"no strategy {name!r}.{hint} Known are {', '.join(STRATEGIES)}; a composition such as "
        f"'omse+bias-correction' may add {', '.join(PARTS)}."
    )
