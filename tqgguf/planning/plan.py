"""A plan: what a user asks, what becomes of one tensor, and the whole decision."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from tqgguf.formats import FORMATS, is_float
from tqgguf.models import scale_name, stored_bytes
from tqgguf.planning.recipes import Recipe
from tqgguf.rotation.padding import Pad
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.steps import Sides


@dataclass(frozen=True)
class Options:
    """What a user may ask of a plan: the command line's options of the same names are its fields.

    block: a Hadamard order, None for the largest. tensor_type: (regular expression, type) pairs,
    the first match wins. target_size: bytes of the file. effort: see planning/inputs.py, None for
    good, or best where there is a text to calibrate on.
    """

    type: str = "tq-q4"
    rotate: str = "auto"
    block: int | None = None
    seed: int = 0
    balance: bool = True
    tensor_type: Sequence[tuple[str, str]] = ()
    output_type: str | None = None
    token_embedding_type: str | None = None
    target_bpw: float | None = None
    target_size: int | None = None
    pad: str = "auto"
    effort: str | None = None
    calibrate: Path | None = None
    calibrate_tokens: int | None = None
    imatrix: Path | None = None
    strict: bool = False
    allow_requantize: bool = False


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: what it is made from, its type, and why if that is a fallback.

    named: an option says its type, and no recipe or budget. is_scaled: beside it stands a scale for
    each of its matrices.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    sides: Sides = field(default_factory=Sides)
    reason: str = ""
    named: bool = False
    pad: Pad | None = None  # how its source grows
    is_scaled: bool = False

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes in the output file."""
        return stored_bytes(self.type, self.size)

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of the source."""
        is_same = self.type == self.source_type and not is_float(self.type)
        return is_same and self.pad is None and not self.sides

    @property
    def scales(self) -> "tuple[PlannedTensor, ...]":
        """The tensor of its matrices' scales, if it has one."""
        if not self.is_scaled:
            return ()
        shape = (prod(self.shape[:-2]),)
        return (PlannedTensor(scale_name(self.name), self.source, shape, "F32", "F32"),)

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.n_bytes / self.size


@dataclass(frozen=True)
class Plan:
    """The whole decision. Sizes are of tensor data; bpw is per weight of the source model."""

    recipe: Recipe
    rotation: Rotation
    tensors: tuple[PlannedTensor, ...]
    source_weights: int
    notes: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()  # what to say of options that change nothing
    quick: bool = False  # whether types with an encoder of few candidates take that
    measured_on: str = ""  # the text that told of the inputs, for the record

    @property
    def stored(self) -> "tuple[PlannedTensor, ...]":
        """All that the file holds: the tensors, each with its matrices' scales before it."""
        return tuple(s for t in self.tensors for s in (*t.scales, t))

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.n_bytes for t in self.stored)

    @property
    def bpw(self) -> float:
        """Bits per weight of the source model, so that an untied head counts as a cost."""
        return 8 * self.n_bytes / self.source_weights

    @property
    def matrix_types(self) -> dict[str, str]:
        """The types of all tensors of more than one axis, by name; tables of integers are none."""
        return {t.name: t.type for t in self.tensors if len(t.shape) > 1 and t.type in FORMATS}

    @property
    def rounded_weights(self) -> int:
        """How many weights of these become a quantized type."""
        matrices = self.matrix_types
        return sum(t.size for t in self.tensors if not is_float(matrices.get(t.name, "F32")))

    @property
    def fallbacks(self) -> tuple[PlannedTensor, ...]:
        """Tensors that did not get the type they were meant to have."""
        return tuple(t for t in self.tensors if t.reason)

    @property
    def mostly_ragged(self) -> bool:
        """Whether most weights that get the recipe's types are in rows that these do not fit."""
        matrices = sum(t.size for t in self.tensors if len(t.shape) > 1 and not t.named)
        ragged = sum(t.size for t in self.fallbacks if not t.named)
        return self.recipe.ragged is not None and 2 * ragged > matrices
