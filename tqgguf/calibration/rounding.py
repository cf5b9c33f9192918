"""Round matrices whose inputs' moments are on the desk, cut into pieces for a crew."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from tqgguf.calibration import work
from tqgguf.calibration.bench import AnyDesk, on_desk
from tqgguf.calibration.moments import InputMoments
from tqgguf.calibration.settings import sweeps_of
from tqgguf.calibration.work import Rows
from tqgguf.formats import FORMATS
from tqgguf.machine.crew import Crew
from tqgguf.models import Model
from tqgguf.output.scales import scales_of


@dataclass(frozen=True)
class Rounder:
    """Rounds a model's matrices to types; sweeps: at most so many for each."""

    model: Model
    types: Mapping[str, str]
    desk: AnyDesk
    crew: Crew
    sweeps: int

    def round(
        self,
        names: Sequence[str],
        moments: InputMoments,
        alongside: Sequence[Callable[[], object]] = (),
    ) -> None:
        """Round matrices that share their inputs, those of one type together.

        alongside: work for those who would have nothing to do.
        """
        for name in names:
            tensor, fmt = self.model.tensors[name], FORMATS[self.types[name]]
            row_bytes = tensor.n_in // fmt.block_size * fmt.type_size
            self.desk.make(f"b.{on_desk(name)}", (tensor.n_rows, row_bytes), np.uint8)
            self.desk.make(f"q.{on_desk(name)}", tensor.shape)
            if fmt.is_scaled:
                self.desk.put(f"scales.{on_desk(name)}", scales_of(tensor))
        todo: list[Callable[[], object]] = []
        for type in dict.fromkeys(self.types[name] for name in names):
            members = [name for name in names if self.types[name] == type]
            for e in range(len(moments.counts)):
                how = type, sweeps_of(type, self.sweeps), moments.share
                todo += [
                    partial(work.round_rows, self.desk, moments.step, e, pieces, *how)
                    for pieces in self._pieces(members, e, moments)
                ]
        todo += alongside
        for _ in self.crew.run(todo):
            pass

    def _pieces(self, names: Sequence[str], e: int, moments: InputMoments) -> list[list[Rows]]:
        """Cut the rows of expert e of these matrices into pieces of about the same size."""
        rows = [
            Rows(on_desk(name), e * size, (e + 1) * size, moments.streams)
            for name in names
            for size in [self.model.tensors[name].n_rows // len(moments.counts)]
        ]
        total = sum(r.end - r.begin for r in rows)
        count = self.desk.sizes.count(total)
        edges = [total * k // count for k in range(count + 1)]
        return [_cut(rows, begin, end) for begin, end in pairwise(edges)]


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
