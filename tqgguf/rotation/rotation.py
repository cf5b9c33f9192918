"""What is done to each tensor's sides, how it is undone, and how it is recorded in the file.

The steps and their texts are in steps.py, the vectors that they name in vectors.py.
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
from tqgguf.machine.threads import map_in_order
from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import Model
from tqgguf.rotation.axis import Axis
from tqgguf.rotation.embedding_norm import unpacked
from tqgguf.rotation.steps import RESIDUAL, Sides, Step
from tqgguf.rotation.vectors import Energies, encode_vector, recorded_size, vector_of

Mode = Literal["fused", "values", "scales", "tensor", "none"]
VERSION = 1
PREFIX = "tqgguf."


@dataclass(frozen=True)
class Rotation:
    """The rotation of a whole model.

    block is the Hadamard order along the residual stream (fused) or a matrix's input (tensor),
    value_block the one along a value head (fused, values), 0 where unused. sides lists the tensors
    that are touched under their names in the rotated file, vectors holds the vectors the steps
    name, float32; energies (energies.py) says what the inputs weigh where those balance channels.
    """

    mode: Mode = "none"
    kind: hadamard.Kind = "sylvester"
    block: int = 0
    value_block: int = 0
    seed: int = 0
    sides: Mapping[str, Sides] = field(default_factory=dict)
    vectors: Mapping[str, F32] = field(default_factory=dict, repr=False)
    energies: Energies | None = field(default=None, repr=False, compare=False)

    def vector_names(self) -> list[str]:
        """The vectors that the steps name, in order of first use."""
        steps = (step for sides in self.sides.values() for step in sides)
        return list(dict.fromkeys(s.vector for s in steps if s.vector is not None))

    def with_vectors_of(
        self, model: Model, *, threads: int | None = 1, known: Mapping[str, F32] = {}
    ) -> "Rotation":
        """The same rotation with its vectors read from the unrotated model's tensors.

        Those that it has are kept. known: vectors that need not be read, as another rotation of the
        model has them, made for the same energies. Raises UnsupportedModelError where a gain is
        zero under a bias c: c/g would be infinite.
        """
        self.check_gains(model)
        names, vectors = self.vector_names(), {**known, **self.vectors}
        new = [name for name in names if name not in vectors]
        found = map_in_order(partial(vector_of, model, self.energies), new, threads=threads)
        vectors |= dict(zip(new, found, strict=True))
        return replace(self, vectors={name: vectors[name] for name in names})

    def check_gains(self, model: Model) -> None:
        """Refuse what `with_vectors_of` refuses, from the norms' gains alone."""
        for name, sides in self.sides.items():
            for step in sides.columns:
                gain = model.tensors.get(step.vector or "")
                if step.verb != "ungain" or gain is None or gain.name == name:
                    continue
                if not np.all(gain.read()):
                    raise UnsupportedModelError(
                        f"{model.path}: {gain.name} holds a gain of zero, which cannot be folded "
                        f"under {name}; use --rotate none"
                    )

    def only(self, name: str) -> "Rotation":
        """What concerns one tensor, small enough to be sent somewhere."""
        sides = {name: self.sides[name]} if name in self.sides else {}
        alone = replace(self, sides=sides, energies=None)
        return replace(alone, vectors={v: self.vectors[v] for v in alone.vector_names()})

    def diagonal(self) -> "Rotation":
        """What it multiplies rows and columns by, without the turns in between."""

        def factors(steps: tuple[Step, ...]) -> tuple[Step, ...]:
            return tuple(step for step in steps if not step.turns)

        sides = {n: Sides(factors(s.columns), factors(s.rows)) for n, s in self.sides.items()}
        return replace(self, sides=sides)

    def granule(self, name: str) -> tuple[int, int]:
        """How many consecutive rows and columns of a tensor its rotation mixes (1: none)."""
        sides = self.sides.get(name, Sides())
        rows, columns = (
            math.lcm(*(self.order(step) for step in steps if step.turns))
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
        x = self._take(sides.columns, x, Axis(-1, first, shape), undo=False)
        return self._take(sides.rows, x, Axis(0, first, shape), undo=False)

    def undo(
        self, name: str, x: F32, *, shape: tuple[int, ...], first: tuple[int, int] = (0, 0)
    ) -> F32:
        """Undo `apply` on a tile: (rows, columns) float32 -> the same shape."""
        sides = self.sides.get(name, Sides())
        x = self._take(sides.rows[::-1], x, Axis(0, first, shape), undo=True)
        return self._take(sides.columns[::-1], x, Axis(-1, first, shape), undo=True)

    def _take(self, steps: tuple[Step, ...], x: F32, along: "Axis", *, undo: bool) -> F32:
        """Take steps along one axis, on slabs of the other that stay in a core's cache."""
        if not steps:
            return x
        out = np.empty_like(x)
        for slab, part in along.slabs(x):
            turned = x[slab]
            for step in steps:
                turned = self._step(turned, step, part, undo=undo)
            out[slab] = turned
        return out

    def _step(self, x: F32, step: Step, along: "Axis", *, undo: bool) -> F32:
        if step.turns:
            return self._turn(x, step, along, undo=undo)
        if step.verb in ("normed", "level"):
            packed = self._vector(step.vector)
            return self._through_norm(step.verb, x, along, packed, undo=undo)
        factor = along.facing(x, self._vector(step.vector, *along.sizes))
        if step.verb in ("plus", "minus"):
            return x + factor if (step.verb == "plus") != undo else x - factor
        if (step.verb == "gain") != undo:
            return x * factor
        return _divide(x, factor, dead=x if undo else np.float32(1))

    def _turn(self, x: F32, step: Step, along: "Axis", *, undo: bool) -> F32:
        order, kind = self.order(step), self._kind(step)
        if step.start:
            return _from(step.start - along.begin, x, along.axis, order)
        turn = partial(hadamard.apply_exact, order=order, kind=kind, axis=along.axis)
        if step != RESIDUAL or kind == "regular":
            return turn(x)
        signs = along.facing(x, _signs(along.size, self.seed))
        return turn(x) * signs if undo else turn(x * signs)

    @staticmethod
    def _through_norm(verb: str, x: F32, along: "Axis", packed: F32, *, undo: bool) -> F32:
        """An embedding that a norm follows (embedding_norm.py), or the gain of that norm."""
        norm = unpacked(packed)
        if verb == "level":
            return np.broadcast_to(norm.gain if undo else norm.level, x.shape).astype(np.float32)
        change = norm.unfold if undo else norm.fold
        return change(x, along.first[0])

    def fits(self, step: Step, along: "Axis") -> bool:
        """Whether a step can be applied to an axis of a tensor."""
        size = along.size
        if step.verb in ("normed", "level"):
            packed = self._vector(step.vector)
            n_embd = int(packed[2]) if len(packed) > 2 else -1
            levels = (len(packed) - 3 - 2 * n_embd) // 2
            rows = math.prod(along.shape[:-1]) if step.verb == "normed" else levels
            return n_embd == size and len(packed) == 3 + 2 * n_embd + 2 * rows
        if not step.turns:
            is_known = step.verb in ("gain", "ungain", "plus", "minus")
            return is_known and len(self._vector(step.vector, *along.sizes)) > 0
        order = self.order(step)
        return (
            hadamard.is_order(order, self._kind(step))
            and step.start <= size
            and (size - step.start) % order == 0
        )

    def order(self, step: Step) -> int:
        """The order of the Hadamard matrices of a turn. Raises FileFormatError for others."""
        if step.verb not in _ORDER:
            raise FileFormatError(
                f"rotation step {str(step)!r} is unknown to this version of tqgguf"
            )
        return _ORDER[step.verb](self)

    def _kind(self, step: Step) -> hadamard.Kind:
        return self.kind if step == RESIDUAL else "sylvester"

    def _vector(self, name: str | None, *sizes: int) -> F32:
        """The vector of a name, and of one of these sizes where any is given."""
        vector = self.vectors.get(name or "")
        if vector is None or vector.ndim != 1 or vector.size not in (sizes or (vector.size,)):
            wanted = f" of {sizes[0]} values" if sizes else ""
            raise FileFormatError(f"rotation metadata: no vector {name!r}{wanted}")
        return vector

    def metadata(self) -> dict[str, Value]:
        """The GGUF keys that record this rotation; `read_rotation` is the inverse.

        Of no rotation little is said: a file may have to be no larger than another tool's.
        """
        if self == NO_ROTATION:
            return {
                f"{PREFIX}version": encode(VERSION),
                f"{PREFIX}rotation.mode": encode(self.mode),
            }
        texts = [sides.record() for sides in self.sides.values()]
        record: dict[str, Any] = {
            "version": VERSION,
            "rotation.mode": self.mode,
            "rotation.kind": self.kind,
            "rotation.block_size": self.block,
            "rotation.value_block_size": self.value_block,
            "rotation.seed": self.seed,
            "rotation.tensors": list(self.sides),
            "rotation.columns": [columns for columns, _ in texts],
            "rotation.rows": [rows for _, rows in texts],
        }
        keys = {PREFIX + key: encode(value) for key, value in record.items()}
        return keys | dict(encode_vector(*item) for item in self.vectors.items())

    def record_bytes(self, model: Model) -> int:
        """How many bytes of a file's header its record takes; about, for no weight is read."""
        blank = {n: np.ones(recorded_size(model, n), np.float32) for n in self.vector_names()}
        keys = replace(self, vectors=blank).metadata()
        return sum(len(encode(key).raw) + 4 + len(value.raw) for key, value in keys.items())


NO_ROTATION = Rotation()
_ORDER: dict[str, Callable[[Rotation], int]] = {
    "residual": lambda r: r.block,
    "value": lambda r: r.value_block,
    "block": lambda r: r.block,
}


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
    turned = hadamard.apply_exact(behind, order=order, axis=axis)
    return np.concatenate([before, turned], axis=axis)


def _divide(x: F32, factor: F32, *, dead: F32 | np.float32) -> F32:
    """Divide by a gain; `dead` where it is zero.

    A norm's gain of zero becomes one like all its gains. Its readers' columns were multiplied by
    it, so there is nothing to restore: they stay.
    """
    zero = factor == 0
    if not zero.any():
        return x / factor
    return np.where(zero, dead, x / np.where(zero, np.float32(1), factor))
