"""RQ: uniform quantization by ranges alone, the floor of every table.

Krishnamoorthi (arXiv 1806.08342, section 3): affine grid from the smallest to the largest value,
weights per output channel, activations per tensor. Without real images the activations' ranges come
from Gaussian noise, which is what there is when nothing is known.
"""

from zaq_plugin.strategies.activations import MinMaxActivations
from zaq_plugin.strategies.images import Noise
from zaq_plugin.strategies.stage import Strategy
from zaq_plugin.strategies.weights import MinMaxWeights

RQ = Strategy(
    name="rq",
    title="uniform, whole range (min-max)",
    paper="Krishnamoorthi, arXiv 1806.08342 (2018)",
    data="synthetic",
    trains=False,
    stages=(Noise(), MinMaxWeights(), MinMaxActivations()),
    takes_images=True,
)
