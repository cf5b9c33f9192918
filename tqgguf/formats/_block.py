"""What types share whose blocks of 32 weights have a float16 scale d, some also a minimum m."""

from collections.abc import Callable

import numpy as np

from tqgguf.formats._scalar import Grid, ScalarFormat
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.scales import Ranges, affine_pair, symmetric, to_half
from tqgguf.kernels.search import reciprocal

Pack = Callable[[Blocks, U8], None]


def scale_format(
    name: str,
    layout: np.dtype[np.void],
    levels: F32,
    *,
    factors: tuple[float, ...],
    pack: Pack,
) -> ScalarFormat:
    """A type of w = d * level; factors are what `tqgguf.kernels.scales.symmetric` tries."""

    def fit(x: F32, importance: F32 | None) -> Blocks:
        blocks = np.zeros(x.shape[1], layout)
        qx, qq = symmetric(x, importance, levels=levels, factors=factors)
        blocks["d"] = to_half(qx * reciprocal(qq))
        return blocks

    return ScalarFormat(name, layout, levels, 32, fit, scale_grid, pack)


def minimum_format(
    name: str, layout: np.dtype[np.void], levels: F32, *, ranges: Ranges, pack: Pack
) -> ScalarFormat:
    """A type of w = d * q + m; ranges are what `tqgguf.kernels.scales.affine` tries."""

    def fit(x: F32, importance: F32 | None) -> Blocks:
        blocks = np.zeros(x.shape[1], layout)
        blocks["d"], blocks["m"] = affine_pair(x, importance, levels=len(levels) - 1, ranges=ranges)
        return blocks

    return ScalarFormat(name, layout, levels, 32, fit, minimum_grid, pack)


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
