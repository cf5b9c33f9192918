"""What is done to each tensor's sides, how it is undone, and how it is recorded in the file.

Along one axis of length n a step multiplies by an n x n matrix M: columns get W <- W M, rows get
W <- M^T W. Every step is named by a short string, which is also its record in the metadata:

* ``residual``     Q = diag(signs) blockdiag(H): the rotation of the residual stream (R1 in QuaRot,
                   arXiv 2404.00456); without signs for LayerNorm models, whose H keeps the mean
* ``value``        blockdiag(H) with one block per head: the rotation of the value heads (R2)
* ``value@N``      the same from index N on, where q, k and v are stacked in one matrix
* ``block``        blockdiag(H) along a matrix's own input: --rotate tensor
* ``gain:NAME``    diag(v) with the vector NAME, such as a norm's gain folded into its readers
* ``ungain:NAME``  diag(1/v): what is left of the norm's own gain (all ones) and, for LayerNorm, of
                   its bias

Steps apply left to right. A 1-D tensor has columns only.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.kernels import hadamard
from tqgguf.kernels.dtypes import F32
from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import Model, Tensor

Mode = Literal["fused", "values", "tensor", "none"]
VERSION = 1
PREFIX = "tqgguf."
_VECTOR = "tqgguf.vector."
_UNGAIN = "ungain:"


@dataclass(frozen=True)
class Sides:
    """The steps applied to a tensor's input axis (columns) and output axis (rows)."""

    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.columns or self.rows)


@dataclass(frozen=True)
class Rotation:
    """The rotation of a whole model.

    block is the Hadamard order along the residual stream (fused) or a matrix's input (tensor),
    value_block the one along a value head (fused, values), 0 where unused. sides lists the tensors
    that are touched under their names in the rotated file, vectors holds the vectors the steps
    name, float32.
    """

    mode: Mode = "none"
    kind: hadamard.Kind = "sylvester"
    block: int = 0
    value_block: int = 0
    seed: int = 0
    sides: Mapping[str, Sides] = field(default_factory=dict)
    vectors: Mapping[str, F32] = field(default_factory=dict, repr=False)

    def vector_names(self) -> list[str]:
        """The vectors that the steps name, in order of first use."""
        steps = (s for sides in self.sides.values() for s in sides.columns + sides.rows)
        return list(dict.fromkeys(s.partition(":")[2] for s in steps if ":" in s))

    def with_vectors_of(self, model: Model) -> "Rotation":
        """The same rotation with its vectors read from the unrotated model's tensors.

        Raises UnsupportedModelError where a gain is zero under a bias c: c/g would be infinite.
        """
        vectors = {n: model.tensors[n].read() for n in self.vector_names()}
        for name, sides in self.sides.items():
            divisors = [s.removeprefix(_UNGAIN) for s in sides.columns if s.startswith(_UNGAIN)]
            for divisor in divisors:
                if divisor != name and not np.all(vectors[divisor]):
                    raise UnsupportedModelError(
                        f"{model.path}: {divisor} holds a gain of zero, which cannot be folded "
                        f"under {name}; use --rotate none"
                    )
        return replace(self, vectors=vectors)

    def granule(self, name: str) -> tuple[int, int]:
        """How many consecutive rows and columns of a tensor its rotation mixes (1: none)."""
        sides = self.sides.get(name, Sides())
        rows, columns = (
            math.lcm(*(self._order(step) for step in steps if ":" not in step))
            for steps in (sides.rows, sides.columns)
        )
        return rows, columns

    def apply(
        self, name: str, x: F32, *, shape: tuple[int, ...], first: tuple[int, int] = (0, 0)
    ) -> F32:
        """Rotate a tile of the tensor `name`: (rows, columns) float32 -> the same shape.

        shape is the whole tensor's (n_out and n_in are its last two axes), first the tile's first
        row and column, both multiples of `granule`.
        """
        sides = self.sides.get(name, Sides())
        for step in sides.columns:
            x = self._along(x, step, -1, first[1], shape[-1], undo=False)
        for step in sides.rows:
            x = self._along(x, step, 0, first[0], shape[-2], undo=False)
        return x

    def undo(
        self, name: str, x: F32, *, shape: tuple[int, ...], first: tuple[int, int] = (0, 0)
    ) -> F32:
        """Undo `apply` on a tile: (rows, columns) float32 -> the same shape."""
        sides = self.sides.get(name, Sides())
        for step in reversed(sides.rows):
            x = self._along(x, step, 0, first[0], shape[-2], undo=True)
        for step in reversed(sides.columns):
            x = self._along(x, step, -1, first[1], shape[-1], undo=True)
        return x

    def _along(self, x: F32, step: str, axis: int, begin: int, size: int, *, undo: bool) -> F32:
        verb, _, name = step.partition(":")
        if name:
            vector = self._vector(name, size)
            if (verb == "gain") != undo:
                return _scale(x, vector, axis, begin)
            return _divide(x, vector, axis, begin, dead=x if undo else np.ones_like(x))
        order = self._order(step)
        verb, _, start = step.partition("@")
        if start:
            return _from(int(start) - begin, x, axis, order)
        turn = hadamard.apply_exact
        if verb != "residual" or self.kind == "regular":
            return turn(x, order=order, kind=self._kind(verb), axis=axis)
        signs = _signs(size, self.seed)
        if undo:
            return _scale(turn(x, order=order, axis=axis), signs, axis, begin)
        return turn(_scale(x, signs, axis, begin), order=order, axis=axis)

    def _order(self, step: str) -> int:
        verb = step.partition("@")[0]
        if verb not in _ORDER:
            raise FileFormatError(f"rotation step {step!r} is unknown to this version of tqgguf")
        return _ORDER[verb](self)

    def _kind(self, verb: str) -> hadamard.Kind:
        return self.kind if verb == "residual" else "sylvester"

    def _vector(self, name: str, size: int) -> F32:
        vector = self.vectors.get(name)
        if vector is None or vector.shape != (size,):
            raise FileFormatError(f"rotation metadata: no vector {name!r} of {size} values")
        return vector

    def metadata(self) -> dict[str, Value]:
        """The GGUF keys that record this rotation; `read_rotation` is the inverse."""
        names = list(self.sides)
        record: dict[str, Any] = {
            "version": VERSION,
            "rotation.mode": self.mode,
            "rotation.kind": self.kind,
            "rotation.block_size": self.block,
            "rotation.value_block_size": self.value_block,
            "rotation.seed": self.seed,
            "rotation.tensors": names,
            "rotation.columns": [" ".join(self.sides[n].columns) for n in names],
            "rotation.rows": [" ".join(self.sides[n].rows) for n in names],
        }
        keys = {PREFIX + key: encode(value) for key, value in record.items()}
        return keys | {_VECTOR + name: encode(v) for name, v in self.vectors.items()}


NO_ROTATION = Rotation()
_ORDER: dict[str, Callable[[Rotation], int]] = {
    "residual": lambda r: r.block,
    "value": lambda r: r.value_block,
    "block": lambda r: r.block,
}


def read_rotation(model: Model) -> Rotation:
    """The rotation recorded in a model's metadata; NO_ROTATION where there is none.

    Raises FileFormatError for a record of a later version or one that contradicts itself.
    """
    version = model.get("tqgguf.version")
    if version is None:
        return NO_ROTATION
    if version != VERSION:
        raise FileFormatError(
            f"{model.path}: rotation metadata of version {version}; this tqgguf reads {VERSION}"
        )
    names, columns, rows = (
        model.get(f"tqgguf.rotation.{key}", []) for key in ("tensors", "columns", "rows")
    )
    if not len(names) == len(columns) == len(rows):
        raise FileFormatError(f"{model.path}: the rotation metadata's arrays differ in length")
    vectors = {
        key.removeprefix(_VECTOR): np.asarray(model.get(key), np.float32)
        for key in model.metadata
        if key.startswith(_VECTOR)
    }
    sides = (Sides(tuple(c.split()), tuple(r.split())) for c, r in zip(columns, rows, strict=True))
    get = partial(_required, model)
    return Rotation(
        mode=get("mode"),
        kind=get("kind"),
        block=get("block_size"),
        value_block=get("value_block_size"),
        seed=get("seed"),
        sides=dict(zip(names, sides, strict=True)),
        vectors=vectors,
    )


def restored(model: Model) -> Model:
    """The model in its original basis: the recorded rotation undone as rows are read.

    An output head that the fold untied stays a tensor of its own.
    """
    rotation = read_rotation(model)
    tensors = {
        name: replace(t, rows=partial(_restored_rows, rotation, t), raw=None)
        if name in rotation.sides
        else t
        for name, t in model.tensors.items()
    }
    metadata = {k: v for k, v in model.metadata.items() if not k.startswith(PREFIX)}
    return Model(model.path, metadata, tensors)


def _restored_rows(rotation: Rotation, tensor: Tensor, start: int, stop: int) -> F32:
    """Rows start..stop in the original basis; whole granules are read and cut."""
    granule, _ = rotation.granule(tensor.name)
    first, last = start // granule * granule, -(-stop // granule) * granule
    rows = rotation.undo(
        tensor.name, tensor.rows(first, last), shape=tensor.shape, first=(first, 0)
    )
    return rows[start - first : stop - first]


def _required(model: Model, key: str) -> Any:
    value = model.get(f"tqgguf.rotation.{key}")
    if value is None:
        raise FileFormatError(f"{model.path}: tqgguf.rotation.{key} is missing")
    return value


@cache
def _signs(size: int, seed: int) -> F32:
    return hadamard.signs(size, seed=seed).astype(np.float32)


def _from(start: int, x: F32, axis: int, order: int) -> F32:
    """Rotate what lies at index `start` and beyond along an axis; the rest stays."""
    count = x.shape[axis]
    begin = min(max(start, 0), count)
    if begin == count:
        return x
    before, behind = np.split(x, [begin], axis=axis)
    turned = hadamard.apply(behind, order=order, axis=axis)
    return np.concatenate([before, turned], axis=axis)


def _scale(x: F32, vector: F32, axis: int, begin: int) -> F32:
    """Multiply along an axis by a vector, which repeats for stacked matrices."""
    return x * _facing(x, vector, axis, begin)


def _divide(x: F32, vector: F32, axis: int, begin: int, *, dead: F32) -> F32:
    """Divide along an axis by a vector, which repeats for stacked matrices; `dead` where it is 0.

    A norm's gain of zero becomes one like all its gains. Its readers' columns were multiplied by
    it, so there is nothing to restore: they stay.
    """
    factor = _facing(x, vector, axis, begin)
    zero = factor == 0
    return np.where(zero, dead, x / np.where(zero, np.float32(1), factor))


def _facing(x: F32, vector: F32, axis: int, begin: int) -> F32:
    """The part of a vector that a tile needs, shaped to multiply its rows or columns."""
    count = x.shape[axis]
    if count != len(vector):
        vector = np.take(vector, np.arange(begin, begin + count), mode="wrap")
    return vector if axis == -1 else vector[:, None]
