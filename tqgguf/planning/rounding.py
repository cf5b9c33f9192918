"""What rounding to each type would cost every matrix, measured on a sample of its rows."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from tqgguf.calibration.sensitivity import energy_of
from tqgguf.formats import dequantize, quantize
from tqgguf.kernels.dtypes import F32, F64
from tqgguf.kernels.metrics import ratio
from tqgguf.machine.threads import few, map_in_order
from tqgguf.models import Model, Tensor
from tqgguf.planning.allocation import Errors
from tqgguf.rotation.vectors import Energies

_SAMPLE = 1 << 15  # weights of a matrix
_STRIP = 1 << 15  # weights whose errors are added up at a time, in a core's cache
_STRETCHES = 4  # of rows, evenly spread


def measure_errors(
    model: Model,
    types: Mapping[str, Sequence[str]],
    energies: Energies | None,
    *,
    threads: int | None,
) -> dict[str, Errors]:
    """The relative squared errors of each named matrix in its types.

    model: in the basis in which it is stored. energies: the mean square of each input in that
    basis, (n_mat, n_in) float32; where they are known, errors are of the outputs, and rounding
    minds them. Plain rounding; error feedback lowers the errors of all types.
    """
    sampled = [_Sample.of(model, energies, name) for name in types]
    kinds: dict[tuple[int, bool, tuple[str, ...]], list[_Sample]] = defaultdict(list)
    for sample in sampled:
        n_in, known = sample.rows.shape[1], sample.energy is not None
        kinds[n_in, known, tuple(types[sample.name])].append(sample)
    alike = [(_Alike.of(samples), candidates) for (_, _, candidates), samples in kinds.items()]
    tasks = [partial(those.errors, type) for those, candidates in alike for type in candidates]
    lost = map_in_order(_call, tasks, threads=few(threads))
    found: dict[str, Errors] = {}
    for those, candidates in alike:
        by_type = {type: next(lost) for type in candidates}
        found |= {
            name: Errors({t: by_type[t][i] for t in candidates}, those.energy is not None)
            for i, name in enumerate(those.names)
        }
    return {name: found[name] for name in types}


def _call(task: Callable[[], list[float]]) -> list[float]:
    return task()


@dataclass(frozen=True)
class _Sample:
    """Some rows of a matrix, (n, n_in), and the energies of its inputs, (n_in,)."""

    name: str
    rows: F32
    energy: F32 | None

    @classmethod
    def of(cls, model: Model, energies: Energies | None, name: str) -> "_Sample":
        return cls(name, _sample(model.tensors[name]), energy_of(model, energies, name))


@dataclass(frozen=True)
class _Alike:
    """Samples of matrices that are alike, rounded together: small arrays cost many calls.

    x, energy: the rows of all, and what each weight's input weighs. begins: of each one's rows.
    """

    names: list[str]
    x: F32
    energy: F32 | None
    begins: NDArray[np.int64]

    @classmethod
    def of(cls, samples: Sequence[_Sample]) -> "_Alike":
        known = [np.broadcast_to(s.energy, s.rows.shape) for s in samples if s.energy is not None]
        return cls(
            [s.name for s in samples],
            np.concatenate([s.rows for s in samples]),
            np.concatenate(known) if known else None,
            np.cumsum([0, *(len(s.rows) for s in samples[:-1])]),
        )

    def errors(self, type: str) -> list[float]:
        """The relative squared error of each in a type."""
        data = quantize(self.x, type, self.energy, threads=1)
        lost = dequantize(data, type, self.x.shape[1])
        lost -= self.x
        pairs = zip(self._energies_of(lost), self._whole, strict=True)
        return [ratio(float(a), float(b)) for a, b in pairs]

    @cached_property
    def _whole(self) -> F64:
        return self._energies_of(self.x)

    def _energies_of(self, values: F32) -> F64:
        """Of each matrix's outputs, or weights where its inputs are unknown."""
        sums = np.empty(len(values))
        step = max(1, _STRIP // values.shape[1])
        for at in range(0, len(values), step):
            strip = slice(at, at + step)
            squares = np.square(values[strip], dtype=np.float64)
            squares *= 1 if self.energy is None else self.energy[strip]
            sums[strip] = squares.sum(axis=1)
        return np.asarray(np.add.reduceat(sums, self.begins))


def _sample(tensor: Tensor) -> F32:
    """Some stretches of its rows: (n, n_in) float32."""
    size = max(1, _SAMPLE // (_STRETCHES * tensor.n_in))
    starts = np.linspace(0, max(0, tensor.n_rows - size), _STRETCHES).astype(int).tolist()
    parts = [tensor.rows(at, min(at + size, tensor.n_rows)) for at in dict.fromkeys(starts)]
    return np.concatenate(parts)
