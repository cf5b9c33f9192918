"""Rows of whole blocks: a model with zero channels added, recorded in the file, and undone.

K- and IQ-types need rows that are multiples of 256. Zeros in the matrices that read and write more
channels leave the network's function alone, exactly: x' = (x, 0). The mean square of an RMSNorm is
over n' channels then and shrinks by n / n', so its gain becomes gain sqrt(n / n') and its epsilon
epsilon n / n'. Which tensors grow along which axis is said in padded_axes.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, prod
from typing import Any

import numpy as np

from tqgguf.errors import FileFormatError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import Model, Tensor
from tqgguf.rotation.vectors import Energies

RECORD = "tqgguf.padding."
_REPLACED = "tqgguf.unpadded."  # and the key whose value was this
_Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Pad:
    """How one tensor grows: (matrices, rows, columns) before and after, the matrices stacked.

    gain: what its values are multiplied by, for a norm's gain.
    """

    before: _Sizes
    after: _Sizes
    gain: float = 1.0

    def apply(self, tensor: Tensor) -> Tensor:
        """The larger tensor; one that has its size already, as it is."""
        return self._between(tensor, self.before, self.after, self.gain)

    def undo(self, tensor: Tensor) -> Tensor:
        """The tensor without what was added."""
        return self._between(tensor, self.after, self.before, 1 / self.gain)

    def _between(self, tensor: Tensor, old: _Sizes, new: _Sizes, gain: float) -> Tensor:
        if prod(old) != tensor.size or old[-1] != tensor.n_in:
            return tensor
        rows = partial(_moved_rows, tensor, old, new, gain)
        return replace(tensor.derived(rows), shape=_shape(tensor.shape, new))


def _shape(shape: tuple[int, ...], sizes: _Sizes) -> tuple[int, ...]:
    """The shape with as many axes as before."""
    n_mat, rows, columns = sizes
    if len(shape) == 1:
        return (columns,)
    return (n_mat * rows, columns) if len(shape) == 2 else sizes


def _moved_rows(
    tensor: Tensor, old: _Sizes, new: _Sizes, gain: float, start: int, stop: int
) -> F32:
    """Rows start..stop of a tensor of other sizes: cut, or filled up with zeros."""
    (_, old_rows, old_columns), (_, new_rows, new_columns) = old, new
    shared, width = min(old_rows, new_rows), min(old_columns, new_columns)
    out = np.zeros((stop - start, new_columns), np.float32)
    for index in range(start // new_rows, -(-stop // new_rows)):
        begin = index * new_rows
        first, last = max(start - begin, 0), min(stop - begin, shared)
        if first < last:
            at = index * old_rows
            x = tensor.rows(at + first, at + last)[:, :width]
            out[begin + first - start : begin + last - start, :width] = x * np.float32(gain)
    return out


@dataclass(frozen=True)
class Padding:
    """What a model's padding changes: tensors by name, metadata by key.

    pads may name an output head that only a fold makes a tensor of its own.
    """

    pads: Mapping[str, Pad] = field(default_factory=dict)
    metadata: Mapping[str, Value] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.pads)

    def energies(self, energies: Energies) -> Energies:
        """Energies of the inputs with those of the added channels, which are zero."""

        def padded(name: str) -> F32 | None:
            found, pad = energies(name), self.pads.get(name)
            if found is None or pad is None or found.shape[1] != pad.before[2]:
                return found
            return np.pad(found, ((0, 0), (0, pad.after[2] - pad.before[2])))

        return padded


def padded(model: Model, padding: Padding) -> Model:
    """The larger model, which computes the same, with the record of what was added."""
    if not padding:
        return model
    pads, tensors = padding.pads, model.tensors
    tensors = {n: pads[n].apply(t) if n in pads else t for n, t in tensors.items()}
    old = {_REPLACED + k: model.metadata[k] for k in padding.metadata if k in model.metadata}
    metadata = {**model.metadata, **padding.metadata, **old, **_record(padding)}
    return replace(model, metadata=metadata, tensors=tensors)


def _record(padding: Padding) -> dict[str, Value]:
    pads = padding.pads.values()
    sizes = {
        f"{when}_{what}": encode(np.array([getattr(p, when)[i] for p in pads], np.uint32))
        for when in ("before", "after")
        for i, what in enumerate(("matrices", "rows", "columns"))
    }
    record = {
        "tensors": encode(list(padding.pads)),
        **sizes,
        "gains": encode(np.array([p.gain for p in pads], np.float64)),
        "keys": encode(list(padding.metadata)),
    }
    return {RECORD + key: value for key, value in record.items()}


def read_padding(model: Model) -> Padding:
    """The padding that a model's metadata records; none where there is no record.

    Raises FileFormatError for a record that contradicts itself or the tensors.
    """
    if f"{RECORD}tensors" not in model.metadata:
        return Padding()
    try:
        padding = _read(model)
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise FileFormatError(
            f"{model.path}: the padding metadata makes no sense ({error})"
        ) from None
    for name, pad in padding.pads.items():
        tensor = model.tensors.get(name)
        if tensor is not None and prod(pad.after) != tensor.size:
            raise FileFormatError(
                f"{model.path}: padding metadata: {name} has shape {tensor.shape}, "
                f"expected {pad.after}"
            )
    return padding


def _read(model: Model) -> Padding:
    def values(key: str) -> list[Any]:
        found = model.get(RECORD + key)
        if not isinstance(found, list):
            raise ValueError(f"{RECORD}{key} is no array")
        return found

    def sizes(when: str) -> list[_Sizes]:
        parts = (values(f"{when}_{what}") for what in ("matrices", "rows", "columns"))
        return [(int(m), int(r), int(c)) for m, r, c in zip(*parts, strict=True)]

    gains = [float(gain) for gain in values("gains")]
    pads = map(Pad, sizes("before"), sizes("after"), gains)
    keys = {str(key): model.metadata[str(key)] for key in values("keys")}
    found = dict(zip(map(str, values("tensors")), pads, strict=True))
    if not all(min(p.before) > 0 and 0 < p.gain < inf for p in found.values()):
        raise ValueError("a size or a gain is not positive")
    if any(p.before[0] != p.after[0] for p in found.values()):
        raise ValueError("matrices cannot be added to a stack")
    if any(b > a for p in found.values() for b, a in zip(p.before, p.after, strict=True)):
        raise ValueError("a tensor would have grown by being cut")
    return Padding(found, keys)


def unpadded(model: Model) -> Model:
    """The model without what its record says was added."""
    padding = read_padding(model)
    if not padding:
        return model
    pads, tensors = padding.pads, model.tensors
    tensors = {n: pads[n].undo(t) if n in pads else t for n, t in tensors.items()}
    kept = {k: v for k, v in model.metadata.items() if not is_record(k)}
    old = {
        key: model.metadata[_REPLACED + key]
        for key in padding.metadata
        if _REPLACED + key in model.metadata
    }
    metadata = {k: old.get(k, v) for k, v in kept.items() if k in old or k not in padding.metadata}
    return replace(model, metadata=metadata, tensors=tensors)


def is_record(key: str) -> bool:
    """Whether a metadata key records a padding."""
    return key.startswith((RECORD, _REPLACED))
