"""Methods that are made of the common stages alone: RQ, OMSE, PWLQ, and FT, the ceiling."""

from zaq_plugin.strategies.images import Distilled, Noise, Real
from zaq_plugin.strategies.parts import (
    ActivationsByWidth,
    CorrectBias,
    LeastSquaresActivations,
    LeastSquaresWeights,
    MinMaxActivations,
    MinMaxWeights,
)
from zaq_plugin.strategies.stage import Strategy
from zaq_plugin.strategies.zaq import ZeroShot

RQ = Strategy(
    name="rq",
    title="uniform, whole range (min-max)",
    paper="Krishnamoorthi, arXiv 1806.08342 (2018)",
    data="synthetic",
    trains=False,
    stages=(Noise(), MinMaxWeights(), MinMaxActivations()),
    takes_images=True,
)
"""Uniform quantization by ranges alone, the floor of every table (section 3): an affine grid from
the smallest to the largest value, weights per output channel, activations per tensor. Without real
images the activations' ranges come from Gaussian noise, all there is when nothing is known."""

OMSE = Strategy(
    name="omse",
    title="uniform, clip of least squared error",
    paper="Choukroun et al., ICCV Workshops 2019",
    data="synthetic",
    trains=False,
    stages=(Distilled(), LeastSquaresWeights(), LeastSquaresActivations()),
    takes_images=True,
)
"""The clip of least squared error, per channel: Low-bit Quantization of Neural Networks for
Efficient Inference (arXiv 1902.06822), section 3.1."""

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
"""Ours, calibrated or data-free: Post-Training Piecewise Linear Quantization (arXiv 2002.00104).
Other than in the paper, clip and breakpoint are chosen together, each side has its own, the bias is
corrected from activations, and activations of few bits are clipped (`ActivationsByWidth`)."""

FT = Strategy(
    name="ft",
    title="fine-tuning with real images (ceiling for data-free methods)",
    paper="Liu et al., CVPR 2021, table 1 (FT)",
    data="real",
    trains=True,
    stages=(Real(), LeastSquaresWeights(), MinMaxActivations(), ZeroShot()),
    takes_images=True,
    levels="pwlq",
)
"""The same quantized model fine-tuned with real images. No labels are used: the float model
teaches. Everything else is as in ``zaq``."""
