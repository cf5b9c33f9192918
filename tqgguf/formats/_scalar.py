"""Types whose weights are codes of their own on a grid that a group of weights shares."""

from collections.abc import Callable
from dataclasses import dataclass

from tqgguf.formats._format import Format
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.feedback import Moments, round_matrix
from tqgguf.kernels.protocols import Choice, Limits
from tqgguf.kernels.scales import as_groups, from_groups
from tqgguf.kernels.search import nearest

Grid = tuple[F32, F32]  # step and offset, (groups, n) each


@dataclass(frozen=True)
class ScalarFormat(Format):
    """A type in which weight e of block j decodes to one of the levels, scaled and moved.

        step[e // group_size, j] * levels[code] + offset[e // group_size, j]

    The steps of encoding stay separate because error feedback calls them separately:

    * fit(x, importance) -> (n,) blocks whose scale fields are set, as the reader will see them
    * grid(blocks) -> step and offset, each (block_size // group_size, n) float32
    * codes(x, blocks) -> (block_size, n) uint8, the nearest indices into levels
    * pack(blocks, codes) -> None, writes the code fields of the blocks

    A type whose groups have integer scales under the block's d and dmin (step = d * code, offset =
    -dmin * code) says in step_codes and offset_codes which integers, and writes them with
    store(blocks, step codes, offset codes), each (groups, n); error feedback refits them.

    A type whose scales can be fitted where its weights are, on a device, gives what fit writes by
    choose(x, importance) -> d, (n,); with groups, d and the step codes, (groups, n); and with
    offsets, these, dmin and the offset codes.
    """

    levels: F32
    group_size: int
    fit: Callable[[F32, F32 | None], Blocks]
    grid: Callable[[Blocks], Grid]
    pack: Callable[[Blocks, U8], None]
    store: Callable[[Blocks, F32, F32], None] | None = None
    step_codes: Limits | None = None
    offset_codes: Limits | None = None
    choose: Callable[[F32, F32 | None], Choice] | None = None

    def codes(self, x: F32, blocks: Blocks) -> U8:
        """The nearest codes under the blocks' scales: (block_size, n) float32 -> like x, uint8."""
        step, offset = (value.reshape(-1) for value in self.grid(blocks))
        codes = nearest(as_groups(x, self.group_size), step, offset, self.levels)
        return from_groups(codes, len(blocks))

    def encode(self, x: F32, importance: F32 | None = None) -> Blocks:
        """Fit, round and pack: (block_size, n) float32 -> (n,) blocks."""
        blocks = self.fit(x, importance)
        self.pack(blocks, self.codes(x, blocks))
        return blocks

    def encode_matrix(self, w: F32, moments: Moments, *, sweeps: int) -> Blocks:
        """Column by column with feedback: (n_in, n) float32 -> (n_in / block_size, n) blocks."""
        return round_matrix(w, moments, self, sweeps=sweeps)[0]
