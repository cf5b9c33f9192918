"""What types share whose blocks have one float16 scale d, some also a minimum m."""

from collections.abc import Callable

import numpy as np

from tqgguf.formats._format import Direct
from tqgguf.formats._quick import by_strips
from tqgguf.formats._scalar import Grid, ScalarFormat
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, U8, U32, Blocks
from tqgguf.kernels.protocols import Choice
from tqgguf.kernels.quick import Strip, ternary
from tqgguf.kernels.scales import Ranges, affine_pair, halved, symmetric, ternary_scale, to_half
from tqgguf.kernels.search import reciprocal

Pack = Callable[[Blocks, U8], None]
TERNARY = np.arange(-1, 2, dtype=np.float32)


def scale_format(
    name: str,
    layout: np.dtype[np.void],
    levels: F32,
    *,
    size: int = 32,
    factors: tuple[float, ...],
    pack: Pack,
    quick: Direct | None = None,
    plain: Direct | None = None,
) -> ScalarFormat:
    """A type of w = d * level, blocks of size weights.

    factors are what `tqgguf.kernels.scales.symmetric` tries.
    """

    def choose(x: F32, importance: F32 | None) -> Choice:
        qx, qq = symmetric(x, importance, levels=levels, factors=factors)
        return (halved(qx * reciprocal(qq)),)

    def fit(x: F32, importance: F32 | None) -> Blocks:
        blocks = np.zeros(x.shape[1], layout)
        (blocks["d"],) = choose(x, importance)
        return blocks

    return ScalarFormat(
        *(name, layout, levels, size, fit, scale_grid, pack),
        quick=quick,
        plain=plain,
        choose=choose,
    )


def ternary_format(
    name: str, layout: np.dtype[np.void], pack: Pack, pack_words: Callable[[Blocks, U32], None]
) -> ScalarFormat:
    """A type of w = d * (q - 1), q in 0..2, blocks of 256.

    pack_words: writes codes as `tqgguf.kernels.quick` has them, (64, n).
    """

    def fit(x: F32, importance: F32 | None) -> Blocks:
        blocks = np.zeros(x.shape[1], layout)
        blocks["d"] = to_half(ternary_scale(x, importance))
        return blocks

    def fill(strip: Strip, blocks: Blocks) -> None:
        blocks["d"], words = ternary(strip)
        pack_words(blocks, words)

    plain = by_strips(fill)
    return ScalarFormat(name, layout, TERNARY, 256, fit, scale_grid, pack, plain=plain)


def minimum_format(
    name: str,
    layout: np.dtype[np.void],
    levels: F32,
    *,
    ranges: Ranges,
    pack: Pack,
    quick: Direct | None = None,
) -> ScalarFormat:
    """A type of w = d * q + m; ranges are what `tqgguf.kernels.scales.affine` tries."""

    def fit(x: F32, importance: F32 | None) -> Blocks:
        blocks = np.zeros(x.shape[1], layout)
        blocks["d"], blocks["m"] = affine_pair(x, importance, levels=len(levels) - 1, ranges=ranges)
        return blocks

    return ScalarFormat(name, layout, levels, 32, fit, minimum_grid, pack, quick=quick)


def scale_grid(blocks: Blocks) -> Grid:
    """The grid of w = d * level: (n,) blocks -> step and offset, (1, n) float32 each."""
    step = blocks["d"].astype(np.float32)[None]
    return step, np.zeros_like(step)


def minimum_grid(blocks: Blocks) -> Grid:
    """The grid of w = d * q + m: (n,) blocks -> step and offset, (1, n) float32 each."""
    return blocks["d"].astype(np.float32)[None], blocks["m"].astype(np.float32)[None]


def pack_4_bits(blocks: Blocks, codes: U8) -> None:
    """Write codes, (32, n) uint8: weights 0..15 in the low nibbles, 16..31 in the high ones."""
    blocks["qs"] = pack_planes(codes.reshape(2, 16, -1), bits=4).T


def pack_5_bits(blocks: Blocks, codes: U8) -> None:
    """Write codes, (32, n) uint8: bits 0-3 as in Q4_0, bit 4 of weight e in bit e % 8 of a byte."""
    pack_4_bits(blocks, codes & np.uint8(15))
    high = codes >> np.uint8(4)
    blocks["qh"] = pack_planes(high.reshape(4, 8, 1, -1), bits=1)[:, 0].T
