"""What happens to a model before, or without, training.

Folding BatchNorm (`fold_batch_norm`), layers of an exported graph as modules (`restore_layers`), a
copy with simulated quantization (`simulate`), activation ranges (`calibrate`), bias correction from
activations (`correct_bias`), and rounding with error feedback (`compensate_rounding`):

    student = simulate(fold_batch_norm(model), PWLQSpec(bits=4), activations=8)
    calibrate(student, batches)
    correct_bias(student, batches)
    print(audit(student))
"""

from zaq_plugin.ptq.auditing import audit, quantized_tensors
from zaq_plugin.ptq.bias import correct_bias
from zaq_plugin.ptq.calibrate import calibrate
from zaq_plugin.ptq.compensate import Compensated, compensate_rounding
from zaq_plugin.ptq.fold import Folding, fold_batch_norm
from zaq_plugin.ptq.simulate import simulate
from zaq_plugin.ptq.unlift import restore_layers
from zaq_plugin.student import twin

__all__ = [
    "Compensated",
    "Folding",
    "audit",
    "calibrate",
    "compensate_rounding",
    "correct_bias",
    "fold_batch_norm",
    "quantized_tensors",
    "restore_layers",
    "simulate",
    "twin",
]
