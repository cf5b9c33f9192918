"""What types share whose blocks of 256 weights have groups, with integer scales under d and dmin.

read(blocks) -> the groups' scales as the reader will see them, (groups, n), undone by store.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from tqgguf.formats._format import Direct
from tqgguf.formats._scalar import Grid, ScalarFormat
from tqgguf.kernels.bits import pack_6bit_pairs, unpack_6bit_pairs
from tqgguf.kernels.dtypes import F32, I8, U8, Blocks
from tqgguf.kernels.protocols import Choice, Limits
from tqgguf.kernels.scales import Ranges
from tqgguf.kernels.superblocks import affine_block, symmetric_block


def symmetric_format(
    name: str,
    layout: np.dtype[np.void],
    levels: F32,
    *,
    group_size: int,
    limits: Limits,
    factors: tuple[float, ...],
    read: Callable[[Blocks], F32 | I8],
    store: Callable[[Blocks, F32], None],
    pack: Callable[[Blocks, U8], None],
    quick: Direct | None = None,
) -> ScalarFormat:
    """A type of w = d * sc[g] * level, sc within limits."""
    low, high = limits

    choose = partial(
        symmetric_block, size=group_size, levels=levels, low=low, high=high, factors=factors
    )

    def fit(x: F32, importance: F32 | None) -> Blocks:
        blocks = np.zeros(x.shape[1], layout)
        blocks["d"], sc = choose(x, importance)
        store(blocks, sc)
        return blocks

    def grid(blocks: Blocks) -> Grid:
        step: F32 = blocks["d"].astype(np.float32) * read(blocks)
        return step, np.zeros_like(step)

    def store_steps(blocks: Blocks, sc: F32, _: F32) -> None:
        store(blocks, sc)

    return ScalarFormat(
        *(name, layout, levels, group_size, fit, grid, pack, store_steps, limits),
        quick=quick,
        choose=choose,
    )


def affine_format(
    name: str,
    layout: np.dtype[np.void],
    levels: F32,
    *,
    group_size: int,
    limits: Limits,
    ranges: Ranges,
    rounds: int = 1,
    read: Callable[[Blocks], tuple[U8, U8]],
    store: Callable[[Blocks, F32, F32], None],
    pack: Callable[[Blocks, U8], None],
) -> ScalarFormat:
    """A type of w = d * sc[g] * q - dmin * m[g], sc and m within limits, which start at 0.

    ranges and rounds are those of `tqgguf.kernels.superblocks.affine_block`.
    """
    steps = {"levels": len(levels) - 1, "top": limits[1], "rounds": rounds}

    def choose(x: F32, importance: F32 | None) -> Choice:
        d, dmin, sc, m = affine_block(x, importance, size=group_size, ranges=ranges, **steps)
        return d, sc, dmin, m

    def fit(x: F32, importance: F32 | None) -> Blocks:
        blocks = np.zeros(x.shape[1], layout)
        blocks["d"], sc, blocks["dmin"], m = choose(x, importance)
        store(blocks, sc, m)
        return blocks

    def grid(blocks: Blocks) -> Grid:
        sc, m = read(blocks)
        return blocks["d"].astype(np.float32) * sc, -blocks["dmin"].astype(np.float32) * m

    return ScalarFormat(
        *(name, layout, levels, group_size, fit, grid, pack, store, limits, limits), choose
    )


def read_6bit_pairs(blocks: Blocks) -> tuple[U8, U8]:
    """The scales and minima of Q4_K and Q5_K: (n,) blocks -> two (8, n)."""
    return unpack_6bit_pairs(blocks["scales"].T)


def store_6bit_pairs(blocks: Blocks, sc: F32, m: F32) -> None:
    """Undo `read_6bit_pairs`."""
    blocks["scales"] = pack_6bit_pairs(sc.astype(np.uint8), m.astype(np.uint8)).T
