"""Levels, and ranges and factors that searches try, where several types share them.

What to try was found by greedy selection on Gaussian and Student-t(5) groups (docs/LOG.md).
"""

import numpy as np
from gguf import quants

IQ4_LEVELS = np.array(quants.IQ4_NL.kvalues, np.float32)
IQ4_FACTORS = (1.02, -0.9, 0.96, 1.08, 0.86, -0.96, -0.86, 1.0, 1.04, 0.82)

# 4-bit floats in halves of their unit, and their codes: a sign and three bits
E2M1_LEVELS = np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12], np.float32)
E2M1_NIBBLES = np.array([15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7], np.uint8)

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
