"""Everything that is done to one tensor, a tile at a time."""

import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tqgguf.errors import TqggufError, WeightError
from tqgguf.formats import dequantize, is_float
from tqgguf.formats import quantize as encode
from tqgguf.kernels import metrics
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
        source = self.source.read_tile(tile.rows, tile.columns)
        if not np.isfinite(source).all():
            raise WeightError(damage(self.source))
        first = (tile.rows[0], tile.columns[0])
        x = self.rotation.apply(p.name, source, shape=p.shape, first=first) if p.sides else source
        if self.scales is not None:
            steps = per_row(self.scales, *tile.rows, self.source.n_rows)
            source, x = source / steps, x / steps
        data = self._rounded(x, tile) if self.rounded is None else self._cut(tile)
        self._write(tile, data)
        return self._judge(source, x, data)

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

    def _cut(self, tile: Tile) -> U8:
        """The tile's bytes of what was encoded already."""
        rows = self.rounded
        if rows is None:
            raise AssertionError(self.planned.name)
        begin, end = (c * self.slot.row_bytes // self.planned.shape[-1] for c in tile.columns)
        return np.ascontiguousarray(rows[slice(*tile.rows), begin:end])

    def _write(self, tile: Tile, data: U8) -> None:
        begin = tile.columns[0] * self.slot.row_bytes // self.planned.shape[-1]
        self.slot.write(data, row=tile.rows[0], begin=begin)

    def _judge(self, source: F32, x: F32, data: U8) -> Outcome:
        """Errors on evenly spaced rows, as many as the tensor's sample needs."""
        p = self.planned
        every = max(1, p.size // SAMPLE)
        result = Outcome(data.nbytes)
        result.error, result.energy = _error(x[::every], data[::every], p.type)
        if p.sides and not is_float(p.type):
            sample = np.ascontiguousarray(source[::every])
            control = encode(sample, p.type, quick=self.quick, threads=1)
            result.control_error, result.control_energy = _error(sample, control, p.type)
        return result


def _error(x: F32, data: U8, type: str) -> tuple[float, float]:
    """The energy of the error and that of the weights."""
    return metrics.error_and_energy(x, dequantize(data, type, x.shape[1]))
