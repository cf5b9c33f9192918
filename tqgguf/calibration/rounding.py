"""Round matrices whose inputs' moments are on the desk, cut into pieces for many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from tqgguf.calibration import work
from tqgguf.calibration.bench import AnyDesk, on_desk
from tqgguf.calibration.moments import InputMoments
from tqgguf.calibration.settings import sweeps_of
from tqgguf.calibration.work import Rows
from tqgguf.formats import FORMATS, LatticeFormat, dequantize
from tqgguf.kernels.dtypes import U8
from tqgguf.machine.board import Task
from tqgguf.models import Model
from tqgguf.output.scales import per_row, scales_of

_LATTICE = 16  # times as long as rounding to a grid, to search among points

Piece = tuple[int, list[Rows], str, int]  # an expert, rows, their type and how many sweeps


@dataclass(frozen=True)
class Rounder:
    """Rounds a model's matrices to types; sweeps: at most so many for each."""

    model: Model
    types: Mapping[str, str]
    desk: AnyDesk
    sweeps: int

    def put_known(self, name: str, data: U8) -> None:
        """Put a matrix on the desk that is rounded already."""
        tensor, type = self.model.tensors[name], self.types[name]
        values = dequantize(data, type, tensor.n_in)
        if FORMATS[type].is_scaled:
            values *= per_row(scales_of(tensor), 0, len(values), len(values))
        self.desk.put(f"q.{on_desk(self.desk, name)}", values.reshape(tensor.shape))

    def rows(self, name: str) -> U8:
        """What a matrix has become."""
        return np.array(self.desk.get(f"b.{on_desk(self.desk, name)}"))

    def tasks(self, names: Sequence[str], moments: InputMoments) -> list[Task]:
        """What is to be done so that matrices that share their inputs are rounded, dearest first.

        Those of one type are rounded together.
        """
        for name in names:
            tensor, fmt = self.model.tensors[name], FORMATS[self.types[name]]
            row_bytes = tensor.n_in // fmt.block_size * fmt.type_size
            self.desk.make(f"b.{on_desk(self.desk, name)}", (tensor.n_rows, row_bytes), np.uint8)
            self.desk.make(f"q.{on_desk(self.desk, name)}", tensor.shape)
            if fmt.is_scaled:
                self.desk.put(f"scales.{on_desk(self.desk, name)}", scales_of(tensor))
        return [
            partial(work.round_rows, self.desk, moments.key, *piece, moments.share)
            for piece in sorted(self._pieces(names, moments), key=self._cost, reverse=True)
        ]

    def _pieces(self, names: Sequence[str], moments: InputMoments) -> list[Piece]:
        """Cut the rows of matrices into pieces that take about as long, each of one type."""
        wholes = [
            (e, self._rows(names, type, e, moments), type, sweeps_of(type, self.sweeps))
            for type in dict.fromkeys(self.types[name] for name in names)
            for e in range(len(moments.counts))
        ]
        cost, found = sum(map(self._cost, wholes)), []
        for whole in wholes:
            e, rows, type, sweeps = whole
            size = _size(rows)
            share = size * cost / self._cost(whole)
            count = self.desk.sizes.count(size, share, is_awaited=moments.step.aims)
            edges = [size * k // count for k in range(count + 1)]
            found += [(e, _cut(rows, *edge), type, sweeps) for edge in pairwise(edges)]
        return found

    def _rows(self, names: Sequence[str], type: str, e: int, moments: InputMoments) -> list[Rows]:
        """Expert e's rows of the matrices of a type."""
        sizes = {n: self.model.tensors[n].n_rows // len(moments.counts) for n in names}
        return [
            Rows(on_desk(self.desk, name), e * size, (e + 1) * size, moments.step.streams)
            for name, size in sizes.items()
            if self.types[name] == type
        ]

    def _cost(self, piece: Piece) -> float:
        """How long it takes, in about the time of a row's greedy pass."""
        _, rows, type, sweeps = piece
        each = _LATTICE if isinstance(FORMATS[type], LatticeFormat) else 1
        return each * (1 + sweeps) * _size(rows)


def _size(rows: Sequence[Rows]) -> int:
    return sum(r.end - r.begin for r in rows)


def _cut(rows: Sequence[Rows], begin: int, end: int) -> list[Rows]:
    """Rows begin to end of matrices that lie one on top of the other."""
    found, above = [], 0
    for r in rows:
        first = max(r.begin, r.begin + begin - above)
        last = min(r.end, r.begin + end - above)
        if first < last:
            found.append(replace(r, begin=first, end=last))
        above += r.end - r.begin
    return found
