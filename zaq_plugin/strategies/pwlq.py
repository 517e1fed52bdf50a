"""PWLQ: piecewise linear weights with bias correction, calibrated or data-free; ours.

Fang et al., Post-Training Piecewise Linear Quantization (ECCV 2020, arXiv 2002.00104). Other than
in the paper, clip and breakpoint are chosen together, each side has its own, the bias is corrected
from activations, and activations of few bits are clipped (`ActivationsByWidth`).
"""

from zaq_plugin.strategies.activations import ActivationsByWidth
from zaq_plugin.strategies.correction import CorrectBias
from zaq_plugin.strategies.images import Distilled
from zaq_plugin.strategies.stage import Strategy
from zaq_plugin.strategies.weights import LeastSquaresWeights

PWLQ = Strategy(
    name="pwlq",
    title="piecewise linear weights, bias correction from activations",
    paper="Fang et al., ECCV 2020",
    data="synthetic",
    trains=False,
    stages=(Distilled(), LeastSquaresWeights(), ActivationsByWidth(), CorrectBias()),
    takes_images=True,
    levels="pwlq",
)
