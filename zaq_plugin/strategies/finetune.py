"""FT: the same quantized model fine-tuned with real images, the ceiling for all without data.

No labels are used: the float model teaches. Everything else is as in ``zaq``.
"""

from zaq_plugin.strategies.activations import MinMaxActivations
from zaq_plugin.strategies.images import Real
from zaq_plugin.strategies.stage import Strategy
from zaq_plugin.strategies.weights import LeastSquaresWeights
from zaq_plugin.strategies.zaq import ZeroShot

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
