"""The steps of a rotation: what is done along one axis, and the text that records it in a file.

Along an axis of length n a step multiplies by an n x n matrix M: columns get W <- W M, rows get
W <- M^T W.

* ``residual``     Q = diag(signs) blockdiag(H): the rotation of the residual stream (R1 in QuaRot,
                   arXiv 2404.00456); without signs for LayerNorm models, whose H keeps the mean
* ``value``        blockdiag(H) with one block per head: the rotation of the value heads (R2)
* ``value@N``      the same from index N on, where q, k and v are stacked in one matrix
* ``block``        blockdiag(H) along a matrix's own input: --rotate tensor
* ``gain:NAME``    diag(v) with the vector NAME, such as a norm's gain folded into its readers
* ``ungain:NAME``  diag(1/v): what is left of the norm's own gain (all ones) and of its bias

* ``plus:NAME``    adds v to a bias, ``minus:NAME`` takes it away

* ``normed:NAME``  what a norm behind the embedding makes of its rows, rotated instead of the rows;
                   ``level:NAME`` is that norm's gain, made uniform (embedding_norm.py)

NAME is a tensor of the unrotated model, or what is derived from several (vectors.py). Steps apply
left to right. A 1-D tensor has columns only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tqgguf.errors import FileFormatError


@dataclass(frozen=True)
class Step:
    """One step: its verb, and the name of a vector or the first index that it turns."""

    verb: str
    vector: str | None = None
    start: int = 0

    @classmethod
    def parse(cls, text: str) -> "Step":
        """The step that a text records, the inverse of `str`. Raises FileFormatError."""
        verb, colon, vector = text.partition(":")
        if colon:
            return cls(verb, vector)
        verb, at, start = text.partition("@")
        if bool(at) != start.isdecimal():
            raise FileFormatError(f"step {text!r} does not fit the form `value@N`")
        return cls(verb, start=int(start or 0))

    @property
    def turns(self) -> bool:
        """Whether it mixes what lies along the axis; others treat every index alone."""
        return self.vector is None

    def __str__(self) -> str:
        if self.vector is not None:
            return f"{self.verb}:{self.vector}"
        return f"{self.verb}@{self.start}" if self.start else self.verb


RESIDUAL, VALUE, BLOCK = Step("residual"), Step("value"), Step("block")


@dataclass(frozen=True)
class Sides:
    """The steps applied to a tensor's input axis (columns) and output axis (rows)."""

    columns: tuple[Step, ...] = ()
    rows: tuple[Step, ...] = ()

    @classmethod
    def parse(cls, columns: str, rows: str) -> "Sides":
        """The sides that two texts record, the inverse of `record`. Raises FileFormatError."""
        read, written = (tuple(map(Step.parse, text.split())) for text in (columns, rows))
        return cls(read, written)

    def record(self) -> tuple[str, str]:
        """The texts of columns and rows: steps with blanks between them."""
        return " ".join(map(str, self.columns)), " ".join(map(str, self.rows))

    def __bool__(self) -> bool:
        return bool(self.columns or self.rows)

    def __or__(self, other: "Sides") -> "Sides":
        """Both, one after the other."""
        return Sides(self.columns + other.columns, self.rows + other.rows)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.columns + self.rows)
