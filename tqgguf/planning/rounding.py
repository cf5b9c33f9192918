"""What rounding to each type would cost every matrix, measured on a sample of its rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tqgguf.calibration.sensitivity import energy_of
from tqgguf.formats import dequantize, quantize
from tqgguf.kernels.dtypes import F32, F64
from tqgguf.kernels.metrics import ratio
from tqgguf.models import Model, Tensor
from tqgguf.planning.allocation import Errors
from tqgguf.rotation.vectors import Energies

_SAMPLE = 1 << 15  # weights of a matrix
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
    found: dict[str, Errors] = {}
    for (_, _, candidates), samples in kinds.items():
        found |= _errors(samples, candidates, threads)
    return {name: found[name] for name in types}


@dataclass(frozen=True)
class _Sample:
    """Some rows of a matrix, (n, n_in), and the energies of its inputs, (n_in,)."""

    name: str
    rows: F32
    energy: F32 | None

    @classmethod
    def of(cls, model: Model, energies: Energies | None, name: str) -> "_Sample":
        return cls(name, _sample(model.tensors[name]), energy_of(model, energies, name))


def _errors(
    samples: Sequence[_Sample], types: Sequence[str], threads: int | None
) -> dict[str, Errors]:
    """The errors of matrices that are alike, rounded together: small arrays cost many calls."""
    x = np.concatenate([s.rows for s in samples])
    known = [np.broadcast_to(s.energy, s.rows.shape) for s in samples if s.energy is not None]
    energy = np.concatenate(known) if known else None
    begins = np.cumsum([0, *(len(s.rows) for s in samples[:-1])])

    def energies_of(values: F32) -> F64:
        """Of each matrix's outputs, or weights where its inputs are unknown."""
        squares = np.square(values, dtype=np.float64)
        squares *= 1 if energy is None else energy
        return np.asarray(np.add.reduceat(squares.sum(axis=1), begins))

    whole = energies_of(x)
    lost = {}
    for type in types:
        data = quantize(x, type, energy, threads=threads)
        lost[type] = energies_of(dequantize(data, type, x.shape[1]) - x)
    return {
        s.name: Errors(
            {t: ratio(float(lost[t][i]), float(whole[i])) for t in types}, energy is not None
        )
        for i, s in enumerate(samples)
    }


def _sample(tensor: Tensor) -> F32:
    """Some stretches of its rows: (n, n_in) float32."""
    size = max(1, _SAMPLE // (_STRETCHES * tensor.n_in))
    starts = np.linspace(0, max(0, tensor.n_rows - size), _STRETCHES).astype(int).tolist()
    parts = [tensor.rows(at, min(at + size, tensor.n_rows)) for at in dict.fromkeys(starts)]
    return np.concatenate(parts)
