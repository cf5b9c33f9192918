"""What calibration made of a model, for whoever writes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tqgguf.kernels.dtypes import U8


@dataclass(frozen=True)
class Calibrated:
    """Rows of the matrices that feedback rounded, (n_rows, n_bytes) uint8, and what made them.

    notes: what the user should know of it.
    """

    rows: Mapping[str, U8] = field(repr=False)
    key: str
    notes: tuple[str, ...] = ()


NOT_CALIBRATED = Calibrated({}, "")
