"""Types that store each weight as a number of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tqgguf.errors import WeightError
from tqgguf.formats._format import Format
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.feedback import Moments


@dataclass(frozen=True)
class FloatFormat(Format):
    """A floating-point type: rounding is all there is to it.

    cast(w) -> the stored numbers, for w (n,) float32 of magnitude below limit.
    significand: bits, the hidden one included. beyond: what to say of weights from limit on.
    """

    cast: Callable[[F32], np.ndarray[tuple[int, ...], np.dtype[np.generic]]]
    significand: int
    limit: float = np.inf
    beyond: str = ""

    def encode(self, x: F32, importance: F32 | None = None) -> Blocks:  # noqa: ARG002
        """(1, n) float32 -> (n,) blocks; each weight stands alone, so importance says nothing."""
        peak = np.abs(x).max(initial=0)
        if peak >= self.limit:
            raise WeightError(f"a weight of {peak:.4g} is beyond {self.beyond}")
        return self.cast(np.ascontiguousarray(x[0])).view(self.layout)

    def encode_matrix(self, w: F32, moments: Moments, *, sweeps: int) -> Blocks:  # noqa: ARG002
        """(n_in, n) float32 -> (n_in, n) blocks: these errors are too small to feed back."""
        return self.encode(w.reshape(1, -1)).reshape(w.shape)
