"""Q2_K: 16 groups of 16 weights; w = d * sc[g] * q - dmin * m[g], q in 0..3, sc and m 4 bits."""

import numpy as np

from tqgguf.formats._superblock import affine_format
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, U8, Blocks

LAYOUT = np.dtype([("scales", "u1", (16,)), ("qs", "u1", (2, 32)), ("d", "<f2"), ("dmin", "<f2")])
LEVELS = np.arange(4, dtype=np.float32)
RANGES = (
    (0.3, 0.3),
    (0.5, 0.1),
    (0.0, 0.4),
    (0.1, 0.0),
    (0.2, 0.5),
    (0.3, -0.2),
    (-0.1, 0.6),
    (0.5, 0.3),
)


def read(blocks: Blocks) -> tuple[U8, U8]:
    """The groups' 4-bit scales and minima: (n,) blocks -> two (16, n)."""
    scales: U8 = blocks["scales"].T
    return scales & np.uint8(15), scales >> np.uint8(4)


def store(blocks: Blocks, sc: F32, m: F32) -> None:
    """Undo `read`."""
    blocks["scales"] = (sc.astype(np.uint8) | m.astype(np.uint8) << np.uint8(4)).T


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (256, n) uint8: of each 128 weights, four runs of 32 share 32 bytes."""
    packed = pack_planes(codes.reshape(2, 4, 32, -1), bits=2)
    blocks["qs"] = np.moveaxis(packed, -1, 0)


FORMAT = affine_format(
    "Q2_K",
    LAYOUT,
    LEVELS,
    group_size=16,
    limits=(0, 15),
    ranges=RANGES,
    rounds=2,
    read=read,
    store=store,
    pack=pack,
)
