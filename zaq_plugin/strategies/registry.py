"""Every strategy, from the floor up, and the parts that compositions are made of."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from zaq_plugin.errors import did_you_mean
from zaq_plugin.strategies.aciq import ACIQ, AllocatedWeights, AnalyticActivations
from zaq_plugin.strategies.baselines import FT, OMSE, PWLQ, RQ
from zaq_plugin.strategies.deepinversion import DEEPINVERSION
from zaq_plugin.strategies.dfq import DFQ, BatchNormRanges, CorrectBiasByMoments, Equalise
from zaq_plugin.strategies.gdfq import GDFQ
from zaq_plugin.strategies.gptq import GPTQ
from zaq_plugin.strategies.images import Distilled, Noise, Real
from zaq_plugin.strategies.lbq import LBQ, SecondTensor
from zaq_plugin.strategies.parts import (
    CorrectBias,
    LeastCubesActivations,
    LeastSquaresActivations,
    LeastSquaresWeights,
    MinMaxActivations,
    MinMaxWeights,
    TopKActivations,
)
from zaq_plugin.strategies.reconstruction import ADAROUND, BRECQ, QDROP
from zaq_plugin.strategies.stage import ImageStage, Stage, Strategy
from zaq_plugin.strategies.zaq import ZAQ, ZAQ_PAPER
from zaq_plugin.strategies.zeroq import ZEROQ, ZEROQ_MIXED, ParetoWeights

_METHODS = (
    RQ,
    OMSE,
    LBQ,
    ACIQ,
    DFQ,
    ZEROQ,
    ZEROQ_MIXED,
    PWLQ,
    GPTQ,
    ADAROUND,
    BRECQ,
    QDROP,
    DEEPINVERSION,
    GDFQ,
    ZAQ_PAPER,
    ZAQ,
    FT,
)


def _part(stage: Stage, title: str, paper: str = "") -> Strategy:
    data = stage.data if isinstance(stage, ImageStage) else "none"
    real = data == "real"
    return Strategy(stage.name, title, paper, data, False, (stage,), real, component=True)


_PARTS = (
    _part(MinMaxWeights(), "weights with their whole range"),
    _part(LeastSquaresWeights(), "weights with the clip of least squared error"),
    _part(AllocatedWeights(), "ACIQ's bits by channel", "Banner et al., NeurIPS 2019"),
    _part(SecondTensor(), "LBQ's second tensor", "Choukroun et al., ICCV Workshops 2019"),
    _part(ParetoWeights(), "ZeroQ's mixed precision", "Cai et al., CVPR 2020"),
    _part(MinMaxActivations(), "activation ranges: smallest and largest value"),
    _part(TopKActivations(), "activation ranges: medians of extremes", "Fang et al., ECCV 2020"),
    _part(LeastSquaresActivations(), "activation ranges of least squared error"),
    _part(LeastCubesActivations(), "activation ranges of least cubed error"),
    _part(AnalyticActivations(), "ACIQ's analytic clip", "Banner et al., NeurIPS 2019"),
    _part(BatchNormRanges(), "activation ranges by BatchNorm", "Nagel et al., ICCV 2019"),
    _part(Real(), "calibrate with the real images of the request"),
    _part(Distilled(), "calibrate with images distilled from BatchNorm statistics"),
    _part(Noise(), "calibrate with Gaussian noise"),
    _part(Equalise(), "cross-layer equalisation", "Nagel et al., ICCV 2019"),
    _part(CorrectBiasByMoments(), "bias correction by BatchNorm", "Nagel et al., ICCV 2019"),
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
    strategies = {**STRATEGIES, **PARTS}
    if name in strategies:
        return strategies[name]
    raise ValueError(
        f"no strategy {name!r}.{did_you_mean(name, strategies)} Known are "
        f"{', '.join(STRATEGIES)}; a composition such as 'omse+bias-correction' may add "
        f"{', '.join(PARTS)}."
    )
