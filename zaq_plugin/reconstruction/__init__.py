"""Block-by-block reconstruction (AdaRound, BRECQ, QDrop), and the learned stand-ins it trains."""

from zaq_plugin.reconstruction.blocks import find_blocks
from zaq_plugin.reconstruction.options import BlockResult, ReconstructOptions
from zaq_plugin.reconstruction.reconstruct import reconstruct

__all__ = ["BlockResult", "ReconstructOptions", "find_blocks", "reconstruct"]
