"""A short pass over a text: the energies of every matrix's inputs, for rotation and importance.

A few hundred tokens tell the energies of channels about as well as a hundred thousand do
(docs/decisions/0023), so the pass takes no longer than the quantization that follows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from tqgguf.calibration.imatrix import UNROTATED, Imatrix
from tqgguf.calibration.kept import Arrays, keep
from tqgguf.calibration.statistics import input_energies
from tqgguf.calibration.tokens import Text, short_sequences
from tqgguf.errors import UnsupportedModelError, WeightError
from tqgguf.kernels.dtypes import F32
from tqgguf.machine.cache import user_cache
from tqgguf.machine.content import content_key, digest
from tqgguf.machine.devices import CPU, Device
from tqgguf.machine.threads import single_threaded_blas
from tqgguf.models import Model, model_files
from tqgguf.network.forward import Tokens

_VERSION = 1  # of what is kept; raised when the same inputs give other numbers
_PRIOR = 64  # tokens' worth of what is known without: what a few tokens say is noisy


def measure_inputs(
    model: Model, text: Text, *, threads: int | None = None, device: Device = CPU
) -> Imatrix:
    """The energies of the model's inputs on some of the text, in the model's own basis.

    model: a sound one (`require_sound`). The numbers do not depend on `threads`. Raises
    UnsupportedModelError where the architecture has no forward pass or a layer does not fit into
    memory, WeightError where the model computes NaN.
    """
    with within_memory(model):
        found = _kept_energies(model, short_sequences(model, text), text.name, threads, device)
    for name, sums in found.sums.items():
        if not np.isfinite(sums).all():
            raise WeightError(
                f"{model.path}: the inputs of {name} are not finite on {text.name}; the model is "
                "damaged, or overflows float32"
            )
    return shrunk(found)


@contextmanager
def within_memory(model: Model) -> Iterator[None]:
    """One line where layers are too large for this memory. Raises UnsupportedModelError."""
    try:
        yield
    except MemoryError as error:
        raise UnsupportedModelError(
            f"{model.path}: its layers are too large for this memory to run it on a text ({error})"
        ) from error


def _kept_energies(
    model: Model, tokens: Tokens, name: str, threads: int | None, device: Device
) -> Imatrix:
    """The energies, as they were kept if this model ran on these tokens before."""

    def found() -> Arrays:
        with single_threaded_blas():
            taken = input_energies(model, tokens, dataset=name, threads=threads, device=device)
        arrays = (a for n in taken.sums for a in (taken.sums[n], taken.counts[n]))
        return [np.array(list(taken.sums)), *arrays]

    said = (_VERSION, np.__version__, *([] if device.is_cpu else [device.card]))
    key = content_key(model_files(model.path), *said, digest([tokens]))
    kept, *arrays = keep(user_cache() / "inputs", key, "energies", found)
    pairs = dict(zip(kept.tolist(), zip(arrays[::2], arrays[1::2], strict=True), strict=True))
    sums, counts = ({n: np.array(pair[i]) for n, pair in pairs.items()} for i in (0, 1))
    return Imatrix(sums, counts, UNROTATED, (name,), tokens.shape[1])


def shrunk(imatrix: Imatrix) -> Imatrix:
    """The same with what few tokens saw drawn towards what all experts see, and all channels."""
    sums = {n: _shrunk(imatrix.sums[n], imatrix.counts[n]) for n in imatrix.sums}
    counts = {n: c + np.float32(_PRIOR) for n, c in imatrix.counts.items()}
    return replace(imatrix, sums=sums, counts=counts)


def _shrunk(sums: F32, counts: F32) -> F32:
    """Sums with the prior's added. sums: (n_mat, n_in), counts: (n_mat,)."""
    prior: F32 = sums.sum(axis=0) / np.float32(max(float(counts.sum()), 1.0))
    if len(sums) == 1:
        prior = np.full_like(prior, prior.mean())
    return sums + np.float32(_PRIOR) * prior
