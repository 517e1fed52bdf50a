"""OMSE: the clip of least squared error, per channel.

Choukroun et al., Low-bit Quantization of Neural Networks for Efficient Inference (ICCV Workshops
2019, arXiv 1902.06822), section 3.1.
"""

from zaq_plugin.strategies.activations import LeastSquaresActivations
from zaq_plugin.strategies.images import Distilled
from zaq_plugin.strategies.stage import Strategy
from zaq_plugin.strategies.weights import LeastSquaresWeights

OMSE = Strategy(
    name="omse",
    title="uniform, clip of least squared error",
    paper="Choukroun et al., ICCV Workshops 2019",
    data="synthetic",
    trains=False,
    stages=(Distilled(), LeastSquaresWeights(), LeastSquaresActivations()),
    takes_images=True,
)
