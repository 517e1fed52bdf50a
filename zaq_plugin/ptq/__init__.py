"""What happens to a model before, or without, training.

Folding BatchNorm, simulating quantized weights and activations, calibrating, correcting biases.
"""

from zaq_plugin.ptq.fold import Folding, fold_batch_norm

__all__ = ["Folding", "fold_batch_norm"]
