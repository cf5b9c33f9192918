"""Energies of a model's inputs, and what a rotation makes of them.

The energy of a channel is the mean square of what a matrix is given there, E[x_c^2], measured in
the model's original basis (an importance matrix holds it). The output error of a rounded matrix is
close to sum_c |error_c|^2 E[x_c^2], which is what rotations are judged by and scales chosen from.
"""

import numpy as np

from tqgguf.kernels.dtypes import F32, F64
from tqgguf.rotation.axis import Axis
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.steps import Step
from tqgguf.rotation.vectors import Energies, is_balance

__all__ = ["Energies", "rotated_energies"]


def rotated_energies(rotation: Rotation, name: str, energies: F32, shape: tuple[int, ...]) -> F32:
    """The energies of a matrix's inputs in the basis in which its weights are stored.

    energies: (n_mat, n_in) float32 in the original basis, shape the matrix's. rotation: with its
    vectors. Exact for what scales channels; within a Hadamard block every channel gets the block's
    mean, as if what enters it were uncorrelated. A norm gives every token a mean square of 1 before
    its gain: what small gains make of noisy energies beyond that is cut off. A channel that a gain
    of zero hides counts as the mean of the others.
    """
    along = Axis(-1, (0, 0), (len(energies), 1, shape[-1]))
    seen = energies.astype(np.float64)
    for step in rotation.sides[name].columns if name in rotation.sides else ():
        seen = _mixed(rotation, step, seen) if step.turns else _scaled(rotation, step, seen, along)
    hidden = ~np.isfinite(seen)
    if hidden.any():
        others = np.where(hidden, 0, seen).sum(axis=1) / np.maximum((~hidden).sum(axis=1), 1)
        seen = np.where(hidden, others[:, None], seen)
    return seen.astype(np.float32)


def _scaled(rotation: Rotation, step: Step, energies: F64, along: Axis) -> F64:
    """Columns that gain a factor read inputs that lost it."""
    if step.verb not in ("gain", "ungain"):
        return energies
    vector = rotation.vectors[step.vector or ""]
    factor = along.facing(energies.astype(np.float32), vector).astype(np.float64)
    if step.verb == "ungain":
        return energies * np.square(factor)
    unknown = np.full_like(energies, np.nan)
    seen = np.divide(energies, np.square(factor), out=unknown, where=factor != 0)
    return seen if is_balance(step.vector or "") else _at_most_one(seen)


def _at_most_one(energies: F64) -> F64:
    """The largest of each row lowered to one level, so that its mean is not above 1."""
    cut = energies.copy()
    for row in cut:
        known = np.sort(row[np.isfinite(row)])
        if known.size and known.mean() > 1:
            kept = np.arange(known.size)
            levels = (known.size - (np.cumsum(known) - known)) / (known.size - kept)
            np.minimum(row, levels[np.argmax(levels <= known)], out=row)
    return cut


def _mixed(rotation: Rotation, step: Step, energies: F64) -> F64:
    """Means over blocks, of the channels that are known."""
    blocks = energies.reshape(len(energies), -1, rotation.order(step))
    known = np.isfinite(blocks)
    total = np.where(known, blocks, 0).sum(axis=-1, keepdims=True)
    count = known.sum(axis=-1, keepdims=True)
    means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return np.broadcast_to(means, blocks.shape).reshape(energies.shape)
