"""TQ2_0: 256 weights share one scale; w = d * (q - 1), q in 0..2. Ternary weights are exact."""

import numpy as np

from tqgguf.formats._block import ternary_format
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import U8, U32, Blocks
from tqgguf.kernels.quick import store

LAYOUT = np.dtype([("qs", "u1", (2, 32)), ("d", "<f2")])


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (256, n) uint8: four runs of 32 share 32 bytes, two bits each."""
    blocks["qs"] = np.moveaxis(pack_planes(codes.reshape(2, 4, 32, -1), bits=2), -1, 0)


def pack_words(blocks: Blocks, words: U32) -> None:
    """Write codes, (64, n) words of four neighbours."""
    packed = pack_planes(words.view(np.uint8).reshape(2, 4, 8, -1), bits=2).view(np.uint32)
    for half in range(2):
        store(packed[half], blocks["qs"][:, half])


FORMAT = ternary_format("TQ2_0", LAYOUT, pack, pack_words)
