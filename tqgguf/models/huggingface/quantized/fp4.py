"""4-bit floats of ModelOpt and compressed-tensors (NVFP4, MXFP4) as ggml's blocks: the same bits.

Hugging Face keeps two neighbours in a byte, and the scales in a tensor of their own. ggml keeps the
scales of a block before its weights, half a group apart in a byte.
"""

from dataclasses import dataclass

import numpy as np

from tqgguf.errors import FileFormatError
from tqgguf.ggml import TYPES, dequantize
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.models.huggingface.quantized.parts import Parts
from tqgguf.models.huggingface.stored import Packed, RowReader, Stored


@dataclass(frozen=True)
class Fp4:
    """codes: (n_out, n_in / 2) U8; scales: (n_out, n_in / group) 8 bits; factor: of the matrix."""

    name: str
    codes: Stored
    scales: Stored
    factor: np.float32

    @property
    def type(self) -> str:
        """NVFP4, or MXFP4 where scales are exponents."""
        return {"F8_E4M3": "NVFP4", "U8": "MXFP4"}.get(self.scales.dtype, "")

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        n_out, half = self.codes.array.shape
        return n_out, 2 * half

    def check(self) -> None:
        """Raise FileFormatError where codes and scales do not belong together."""
        group = {"NVFP4": 16, "MXFP4": 32}.get(self.type, 0)
        n_out, n_in = self.shape
        if not group or n_in % group or self.scales.array.shape != (n_out, n_in // group):
            raise FileFormatError(
                f"{self.name}: 4-bit floats of shape {self.shape} with {self.scales.dtype} scales "
                f"of shape {self.scales.array.shape}; expected one for each 16 or 32 weights"
            )

    def packed(self) -> Packed | None:
        """The matrix in ggml's blocks, or None where its rows are no whole number of them."""
        if self.shape[1] % TYPES[self.type].weights:
            return None
        factor = np.array([self.factor], np.float32) if self.type == "NVFP4" else None
        return Packed(self.type, self._raw, factor)

    def rows(self) -> RowReader:
        """What reads the weights."""
        return self._rows

    def _rows(self, start: int, stop: int) -> F32:
        n_in, block = self.shape[1], TYPES[self.type].weights
        decoded = dequantize(self._raw(start, stop), self.type) * self.factor
        rows: F32 = decoded[:, :n_in]
        return rows if n_in % block else decoded

    def _raw(self, start: int, stop: int) -> U8:
        """Rows of blocks, the last one of a row filled up with zeros: (stop - start, n_bytes)."""
        _, weights, size = TYPES[self.type]
        codes = self.codes.integers(slice(start, stop))
        scales = np.asarray(self.scales.array[start:stop]).view(np.uint8)
        if self.type == "NVFP4":
            scales = scales & np.uint8(127)
        n, groups = scales.shape
        per_block = size - weights // 2
        blocks = -(-groups // per_block)
        whole = np.zeros((n, blocks * per_block, 1 + weights // per_block // 2), np.uint8)
        whole[:, :groups, 0] = scales
        whole[:, :groups, 1:] = _apart(codes.reshape(n, groups, codes.shape[1] // groups))
        whole = whole.reshape(n, blocks, per_block, whole.shape[2])
        parts = [whole[..., 0], whole[..., 1:].reshape(n, blocks, weights // 2)]
        return np.concatenate(parts, axis=-1).reshape(n, blocks * size)


def _apart(neighbours: U8) -> U8:
    """Nibbles of weights (2 i, 2 i + 1) as nibbles of weights half a group apart: like it."""
    nibbles = np.stack([neighbours & 15, neighbours >> 4], axis=-1)
    half = neighbours.shape[-1]
    nibbles = nibbles.reshape(*neighbours.shape[:-1], 2 * half)
    apart: U8 = nibbles[..., :half] | nibbles[..., half:] << 4
    return apart


def _fp4(parts: Parts) -> Fp4:
    """4-bit floats: of ModelOpt, whose factor multiplies, or compressed-tensors, whose divides."""
    end = ".weight_packed" if ".weight_packed" in parts.tensors else ".weight"
    factor = np.float32(1)
    if ".weight_scale_2" in parts.tensors:
        factor = np.float32(_one_number(parts, ".weight_scale_2"))
    elif ".weight_global_scale" in parts.tensors:
        factor = np.float32(1) / np.float32(_one_number(parts, ".weight_global_scale"))
    found = Fp4(parts.name, parts.matrix(end), parts.tensors[".weight_scale"], factor)
    found.check()
    return found


def _one_number(parts: Parts, end: str) -> float:
    values = parts.tensors[end].values().reshape(-1)
    if values.size != 1 or not np.isfinite(values).all() or values[0] <= 0:
        raise parts.wrong(f"{end} is {values[:3].tolist()}, expected one positive number")
    return float(values[0])


def fp4_rows(parts: Parts) -> tuple[tuple[int, ...], RowReader]:
    """The shape of a matrix of 4-bit floats, and what reads its rows."""
    found = _fp4(parts)
    return found.shape, found.rows()


def fp4_packed(parts: Parts) -> Packed | None:
    """The same matrix in ggml's blocks, where its rows are a whole number of them."""
    return _fp4(parts).packed()
