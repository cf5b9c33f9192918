"""ggml's tensor types by name: their numbers in GGUF, their blocks, and how rows of them decode.

What gguf-py knows is taken from there; what llama.cpp reads and its release lacks stands here.
"""

from typing import NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from tqgguf.kernels.dtypes import F32, U8


class BlockType(NamedTuple):
    """A type's number in GGUF, and the weights and bytes of one of its blocks."""

    number: int
    weights: int
    bytes: int


_NEWER = {"Q1_0": BlockType(41, 128, 18), "Q2_0": BlockType(42, 64, 18)}
TYPES: dict[str, BlockType] = {
    **{t.name: BlockType(int(t), *size) for t, size in GGML_QUANT_SIZES.items()},
    **_NEWER,
}
NAMES = {type.number: name for name, type in TYPES.items()}
_STRIP = 1 << 16  # weights decoded at a time: calls take little of it, and a cache holds it
_BITS = {"Q1_0": 1, "Q2_0": 2}  # w = d * level, codes lowest bits first
_LEVELS = {1: np.array([-1, 1], np.float32), 2: np.array([-1, 0, 1, 2], np.float32)}


def dequantize(rows: U8, name: str) -> F32:
    """Decode rows of a type: (n_rows, n_bytes) uint8 -> (n_rows, n_in) float32.

    Raises NotImplementedError for a type that cannot be decoded.
    """
    if name in _BITS:
        return _dequantize_plain(rows, _BITS[name], TYPES[name])
    number, type = GGMLQuantizationType[name], TYPES[name]
    blocks = np.ascontiguousarray(rows).reshape(-1, type.bytes)
    weights = np.empty((len(blocks), type.weights), np.float32)
    step = max(1, _STRIP // type.weights)
    for at in range(0, len(blocks), step):  # as one row: gguf-py takes 16 at a time, long or short
        strip = quants.dequantize(blocks[at : at + step].reshape(1, -1), number)
        weights[at : at + step] = strip.reshape(-1, type.weights)
    return weights.reshape(*rows.shape[:-1], rows.shape[-1] // type.bytes * type.weights)


def _dequantize_plain(rows: U8, bits: int, type: BlockType) -> F32:
    """Blocks of a float16 d and then the codes: the layout of Q1_0 and Q2_0."""
    blocks = np.ascontiguousarray(rows).reshape(-1, type.bytes)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = blocks[:, 2:, None] >> shifts & np.uint8((1 << bits) - 1)
    weights = _LEVELS[bits][codes].reshape(-1, type.weights)
    weights *= blocks[:, :2].copy().view("<f2").astype(np.float32)
    decoded: F32 = weights.reshape(len(rows), -1)
    return decoded
