"""Everything that is done to one tensor, a tile at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tqgguf.errors import TqggufError, WeightError
from tqgguf.formats import dequantize, is_float
from tqgguf.formats import quantize as encode
from tqgguf.kernels import metrics
from tqgguf.kernels.arrays import joined
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.models import Tensor
from tqgguf.models.damage import damage
from tqgguf.output.disk import Slot
from tqgguf.output.scales import per_row
from tqgguf.output.tiles import Tile
from tqgguf.pipeline.report import Outcome
from tqgguf.planning.plan import PlannedTensor
from tqgguf.rotation.rotation import Rotation

SAMPLE = 1 << 15  # weights per tensor whose error is measured; their number makes it good to 1 %
_STRETCHES = 16  # of rows of a tile, where not all are read: with 4, heads of attention are missed


@dataclass(frozen=True)
class Encoder:
    """Everything that is done to one tensor."""

    source: Tensor
    planned: PlannedTensor
    rotation: Rotation
    slot: Slot
    rounded: U8 | None = None
    importance: F32 | None = None
    scales: F32 | None = None  # of its matrices, which it is if it is no matrix itself
    quick: bool = False

    def __call__(self, tile: Tile) -> Outcome:
        """Encode and write a tile. Raises WeightError for weights that are NaN or infinite."""
        began = time.perf_counter()
        try:
            result = self._copy(tile) if self.planned.is_copy else self._encode(tile)
        except TqggufError as error:
            raise type(error)(f"{self.planned.name}: {error}") from None
        result.seconds = time.perf_counter() - began
        return result

    def _copy(self, tile: Tile) -> Outcome:
        data = self.source.stored(*tile.rows)
        self._write(tile, data)
        return Outcome(data.nbytes)

    def _encode(self, tile: Tile) -> Outcome:
        p = self.planned
        if self.scales is not None and not p.is_scaled:
            return self._put_scales(self.scales[None])
        if self.rounded is not None:
            return self._put_rounded(self._cut(self.rounded, tile), tile)
        source, x = self._read(tile, [tile.rows])
        data = self._rounded(x, tile)
        self._write(tile, data)
        every = self._every
        return self._judge(source[::every], x[::every], data[::every], data.nbytes)

    def _read(self, tile: Tile, places: Sequence[tuple[int, int]]) -> tuple[F32, F32]:
        """Rows of a tile as they are given and as they are stored, in steps of their scales."""
        source = self.source.read_runs(places, tile.columns)
        if not np.isfinite(source).all():
            raise WeightError(damage(self.source))
        x = self._rotated(source, places, tile.columns[0]) if self.planned.sides else source
        if self.scales is None:
            return source, x
        n_rows = self.source.n_rows
        steps = joined([per_row(self.scales, *place, n_rows) for place in places])
        return source / steps, x / steps

    def _rotated(self, source: F32, places: Sequence[tuple[int, int]], column: int) -> F32:
        p, ends = self.planned, np.cumsum([end - begin for begin, end in places])
        parts = zip(np.split(source, ends[:-1]), places, strict=True)
        turned = [
            self.rotation.apply(p.name, part, shape=p.shape, first=(begin, column))
            for part, (begin, _) in parts
        ]
        return joined(turned)

    def _put_rounded(self, data: U8, tile: Tile) -> Outcome:
        """Write what calibration rounded; it has read all weights, and only a sample is needed."""
        self._write(tile, data)
        places = self._sample(tile)
        source, x = self._read(tile, places)
        top = tile.rows[0]
        rows = np.concatenate([data[begin - top : end - top] for begin, end in places])
        return self._judge(source, x, rows, data.nbytes)

    def _sample(self, tile: Tile) -> list[tuple[int, int]]:
        """Stretches of a tile's rows, evenly spread; all of them where a rotation mixes rows."""
        begin, end = tile.rows
        wanted = -(-(end - begin) // self._every)
        if self.rotation.granule(self.planned.name)[0] > 1:
            return [tile.rows]
        count = min(_STRETCHES, wanted)
        size = -(-wanted // count)
        starts = np.linspace(begin, end - size, count).astype(int).tolist()
        return [(start, start + size) for start in starts]

    @property
    def _every(self) -> int:
        """One of so many rows is a large enough sample."""
        return max(1, self.planned.size // SAMPLE)

    def _put_scales(self, row: F32) -> Outcome:
        self.slot.write(row.view(np.uint8), row=0)
        return Outcome(row.nbytes)

    def _rounded(self, x: F32, tile: Tile) -> U8:
        """Encode a tile, each of the matrices in it with its own importance."""
        if self.importance is None:
            return encode(x, self.planned.type, quick=self.quick, threads=1)
        n_out = self.source.n_rows // len(self.importance)
        begin, end = tile.rows
        cuts = [begin, *range((begin // n_out + 1) * n_out, end, n_out), end]
        columns = self.importance[:, slice(*tile.columns)]
        parts = [
            encode(x[a - begin : b - begin], self.planned.type, columns[a // n_out], threads=1)
            for a, b in pairwise(cuts)
        ]
        return np.concatenate(parts)

    def _cut(self, rows: U8, tile: Tile) -> U8:
        """The tile's bytes of what was encoded already."""
        begin, end = (c * self.slot.row_bytes // self.planned.shape[-1] for c in tile.columns)
        return np.ascontiguousarray(rows[slice(*tile.rows), begin:end])

    def _write(self, tile: Tile, data: U8) -> None:
        begin = tile.columns[0] * self.slot.row_bytes // self.planned.shape[-1]
        self.slot.write(data, row=tile.rows[0], begin=begin)

    def _judge(self, source: F32, x: F32, data: U8, n_bytes: int) -> Outcome:
        """The errors of some of a tile's rows; n_bytes: of all of them."""
        p, result = self.planned, Outcome(n_bytes)
        result.error, result.energy = _error(x, data, p.type)
        if p.sides and not is_float(p.type):
            control = encode(np.ascontiguousarray(source), p.type, quick=self.quick, threads=1)
            result.control_error, result.control_energy = _error(source, control, p.type)
        return result


def _error(x: F32, data: U8, type: str) -> tuple[float, float]:
    """The energy of the error and that of the weights."""
    return metrics.error_and_energy(x, dequantize(data, type, x.shape[1]))
