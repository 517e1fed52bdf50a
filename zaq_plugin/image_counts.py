"""How many images are made from a model, wherever nobody says how many."""

from __future__ import annotations

CALIBRATION_IMAGES = 32
"""Where nothing is trained; benchmarks/results/field_choice.md shows what fewer and more give."""
TRAINING_IMAGES = 384
"""Where something is: 256 to learn from, and 128 that judge."""
