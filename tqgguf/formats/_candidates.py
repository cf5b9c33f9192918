"""Levels, and ranges and factors that searches try, where several types share them.

What to try was found by greedy selection on Gaussian and Student-t(5) groups (docs/LOG.md).
"""

import numpy as np
from gguf import quants

IQ4_LEVELS = np.array(quants.IQ4_NL.kvalues, np.float32)
IQ4_FACTORS = (1.02, -0.9, 0.96, 1.08, 0.86, -0.96, -0.86, 1.0, 1.04, 0.82)

RANGES_4_BITS = (
    (0.2, 0.2),
    (-0.2, 0.4),
    (0.4, -0.1),
    (0.0, 0.3),
    (0.2, -0.6),
    (0.1, -0.1),
    (-0.6, 0.2),
)
RANGES_5_BITS = (
    (0.0, 0.0),
    (0.2, -0.6),
    (-0.2, 0.2),
    (0.2, -0.2),
    (-0.6, 0.2),
    (0.0, 0.6),
    (0.6, 0.0),
    (-0.6, -0.6),
)
