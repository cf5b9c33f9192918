"""What rounding to each type would cost every matrix, measured on a sample of its rows."""

from collections.abc import Mapping, Sequence

import numpy as np

from tqgguf.calibration.sensitivity import energy_of
from tqgguf.formats import dequantize, quantize
from tqgguf.kernels.dtypes import F32
from tqgguf.kernels.metrics import ratio, sum_squares
from tqgguf.machine.threads import few, map_in_order
from tqgguf.models import Model, Tensor
from tqgguf.planning.allocation import Errors
from tqgguf.rotation.vectors import Energies

_SAMPLE = 1 << 14  # weights of a matrix
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

    def errors(name: str) -> Errors:
        return _errors(model.tensors[name], types[name], energy_of(model, energies, name))

    names = list(types)
    found = map_in_order(errors, names, threads=few(threads))
    return dict(zip(names, found, strict=True))


def _errors(tensor: Tensor, types: Sequence[str], energy: F32 | None) -> Errors:
    x = _sample(tensor)
    root = np.float32(1) if energy is None else np.sqrt(energy)
    whole = sum_squares(x * root)
    found = {}
    for type in types:
        data = quantize(x, type, energy, threads=1)
        found[type] = ratio(sum_squares((dequantize(data, type, tensor.n_in) - x) * root), whole)
    return Errors(found, of_outputs=energy is not None)


def _sample(tensor: Tensor) -> F32:
    """Some stretches of its rows: (n, n_in) float32."""
    size = max(1, _SAMPLE // (_STRETCHES * tensor.n_in))
    starts = np.linspace(0, max(0, tensor.n_rows - size), _STRETCHES).astype(int).tolist()
    parts = [tensor.rows(at, min(at + size, tensor.n_rows)) for at in dict.fromkeys(starts)]
    return np.concatenate(parts)
