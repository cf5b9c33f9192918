"""TQ1_0: as TQ2_0, with five weights to a byte; w = d * (q - 1), q in 0..2.

A byte is a fraction of 256 whose first digits to the base of 3 are the codes. Runs of 32, then of
16 weights share bytes, five runs each, and at last four of 4 in qh.
"""

import numpy as np

from tqgguf.formats._block import ternary_format
from tqgguf.kernels.bits import as_fractions, pack_trits, trits_number
from tqgguf.kernels.dtypes import U8, U32, Blocks
from tqgguf.kernels.quick import store

LAYOUT = np.dtype([("qs", "u1", (48,)), ("qh", "u1", (4,)), ("d", "<f2")])


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (256, n) uint8."""
    long, short, last = codes[:160], codes[160:240], codes[240:]
    blocks["qs"][:, :32] = pack_trits(long.reshape(5, 32, -1)).T
    blocks["qs"][:, 32:] = pack_trits(short.reshape(5, 16, -1)).T
    blocks["qh"] = pack_trits(last.reshape(4, 4, -1)).T


def pack_words(blocks: Blocks, words: U32) -> None:
    """Write codes, (64, n) words of four neighbours."""
    codes = words.view(np.uint8)
    long, short, last = codes[:40], codes[40:60], codes[60:]
    shapes = (long, (5, 8, -1)), (short, (5, 4, -1)), (last, (4, 1, -1))
    numbers = np.concatenate([trits_number(part.reshape(shape)) for part, shape in shapes])
    packed = as_fractions(numbers).view(np.uint32)
    store(packed[:12], blocks["qs"])
    store(packed[12:], blocks["qh"])


FORMAT = ternary_format("TQ1_0", LAYOUT, pack, pack_words)
