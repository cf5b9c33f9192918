"""MXFP4 weights of Hugging Face folders (gpt-oss) as ggml's blocks: the same bits, moved.

Hugging Face keeps 16 bytes of 32 weights, two neighbours in a byte, and the exponents in a tensor
of their own; ggml keeps an exponent before each 16 bytes, whose nibbles are 16 weights apart.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqgguf.errors import FileFormatError
from tqgguf.ggml import dequantize
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.models.model import Tensor

_SIZE = 32  # weights in a block
BLOCKS, SCALES = "_blocks", "_scales"


@dataclass(frozen=True)
class Mxfp4:
    """blocks: (n_expert, n_out, n_blocks, 16) uint8; scales: the exponent of each block."""

    name: str
    blocks: NDArray[Any]
    scales: NDArray[Any]

    def __post_init__(self) -> None:
        if self.blocks.ndim != 4 or self.blocks.shape != (*self.scales.shape, _SIZE // 2):
            raise FileFormatError(
                f"{self.name}: blocks of shape {self.blocks.shape} and scales of shape "
                f"{self.scales.shape}; expected 16 bytes for each scale"
            )

    def rows_of_each(self, name: str, rows: slice) -> "Mxfp4":
        """Some rows of every expert, under another name."""
        return Mxfp4(name, self.blocks[:, rows], self.scales[:, rows])

    def tensor(self) -> Tensor:
        """The weights as a Tensor of ggml's type MXFP4."""
        n_expert, n_out, n_blocks, _ = self.blocks.shape
        shape = (n_expert, n_out, n_blocks * _SIZE)
        return Tensor(self.name, shape, "MXFP4", self._rows, self._raw)

    def _raw(self, start: int, stop: int) -> U8:
        n_blocks = self.blocks.shape[2]
        rows = [divmod(row, self.blocks.shape[1]) for row in range(start, stop)]
        packed = np.empty((len(rows), n_blocks, 1 + _SIZE // 2), np.uint8)
        for i, (expert, row) in enumerate(rows):
            packed[i, :, 0] = self.scales[expert, row]
            packed[i, :, 1:] = _apart(self.blocks[expert, row])
        return packed.reshape(len(rows), n_blocks * (1 + _SIZE // 2))

    def _rows(self, start: int, stop: int) -> F32:
        decoded = dequantize(self._raw(start, stop), "MXFP4")
        return decoded.reshape(stop - start, self.blocks.shape[2] * _SIZE)


def _apart(neighbours: U8) -> U8:
    """Nibbles of weights (2 i, 2 i + 1) as nibbles of weights (i, i + 16): (n, 16) uint8."""
    nibbles = np.stack([neighbours & 15, neighbours >> 4], axis=-1).reshape(-1, _SIZE)
    apart: U8 = nibbles[:, : _SIZE // 2] | nibbles[:, _SIZE // 2 :] << 4
    return apart
