"""How to calibrate."""

from dataclasses import dataclass

from tqgguf.formats import FORMATS
from tqgguf.kernels import feedback

_FINE_BITS = 7  # a weight: one sweep is enough


@dataclass(frozen=True)
class Feedback:
    """How to calibrate; the defaults are what was measured to be good (docs/LOG.md)."""

    sweeps: int = 2
    damping: float = feedback.DAMPING
    drift: float = 1.0  # the share of drift that is made up for
    memory: int = 2 << 30  # bytes of inner activations to keep; beyond that they are computed anew
    factors: int = 2  # how many second moments are factored at once


def sweeps_of(type: str, most: int) -> int:
    """How many sweeps are worth their time: what is left of the error of many bits matters less."""
    fmt = FORMATS[type]
    bits = 8 * fmt.type_size / fmt.block_size
    return most if bits < _FINE_BITS else min(most, 1)
