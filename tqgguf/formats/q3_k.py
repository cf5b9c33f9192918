"""Q3_K: 16 groups of 16 weights; w = d * sc[g] * (q - 4), q in 0..7, sc in -32..31."""

import numpy as np

from tqgguf.formats._format import Direct
from tqgguf.formats._quick import by
from tqgguf.formats._scalar import ScalarFormat
from tqgguf.formats._superblock import symmetric_format
from tqgguf.kernels.bits import pack_6bit, pack_planes, unpack_6bit
from tqgguf.kernels.dtypes import F32, U8, Blocks

LAYOUT = np.dtype(
    [("hmask", "u1", (32,)), ("qs", "u1", (2, 32)), ("scales", "u1", (12,)), ("d", "<f2")]
)
LEVELS = np.arange(-4, 4, dtype=np.float32)
FACTORS = (1.04, 0.8, 1.16, 0.96)
QUICK_FACTORS = (0.96, 1.1)


def read(blocks: Blocks) -> F32:
    """The groups' signed 6-bit scales: (n,) blocks -> (16, n)."""
    scales: F32 = unpack_6bit(blocks["scales"].T).astype(np.float32) - 32
    return scales


def store(blocks: Blocks, sc: F32) -> None:
    """Undo `read`."""
    blocks["scales"] = pack_6bit((sc + 32).astype(np.uint8)).T


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (256, n) uint8: bits 0-1 as in Q2_K, bit 2 of each run of 32 in hmask."""
    low = pack_planes((codes & np.uint8(3)).reshape(2, 4, 32, -1), bits=2)
    blocks["qs"] = np.moveaxis(low, -1, 0)
    blocks["hmask"] = pack_planes((codes >> np.uint8(2)).reshape(8, 32, -1), bits=1).T


def _tried(factors: tuple[float, ...], quick: Direct | None = None) -> ScalarFormat:
    return symmetric_format(
        "Q3_K",
        LAYOUT,
        LEVELS,
        group_size=16,
        limits=(-32, 31),
        factors=factors,
        read=read,
        store=store,
        pack=pack,
        quick=quick,
    )


FORMAT = _tried(FACTORS, quick=by(_tried(QUICK_FACTORS)))
