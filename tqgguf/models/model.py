"""A model on disk as the rest of tqgguf sees it: named tensors read lazily, and metadata."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tqgguf.ggml import TYPES
from tqgguf.kernels.arrays import joined
from tqgguf.kernels.dtypes import F32, I64, U8
from tqgguf.models.metadata import Value

SCALED = ("NVFP4",)  # types with a scale of the whole matrix in a tensor of its own
_NO_NETWORKS = {  # values of general.type
    "imatrix": "an importance matrix, no model; give its model, and this with --imatrix",
    "adapter": "a LoRA adapter, no model; merge it into its base model first",
}
INTEGERS = ("I8", "I16", "I32", "I64")  # tables of numbers that are no weights


def stored_bytes(type: str, weights: int) -> int:
    """Bytes of so many weights, whole blocks, in a GGUF type."""
    block = TYPES[type]
    return weights // block.weights * block.bytes


def scale_name(matrix: str) -> str:
    """The tensor that holds the scales of a matrix."""
    return f"{matrix.removesuffix('.weight')}.scale"


@dataclass(frozen=True)
class Tensor:
    """One tensor, read when asked.

    shape is in NumPy's order: (n_out, n_in) for a matrix, (n_expert, n_out, n_in) for stacked
    experts; a row is a run of shape[-1] weights. type is the GGUF name of what is stored. scales:
    what rows multiplies the stored weights of each matrix by, (n_mat,), where the file has that in
    a tensor of its own.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    rows: Callable[[int, int], F32] = field(repr=False)  # (start, stop) -> (stop - start, n_in)
    raw: Callable[[int, int], U8] | None = field(default=None, repr=False)  # see stored
    tile: Callable[[int, int, int, int], F32] | None = field(default=None, repr=False)
    picked: Callable[[I64, int, int], F32] | None = field(default=None, repr=False)  # by number
    scales: F32 | None = field(default=None, repr=False)

    @property
    def n_in(self) -> int:
        """Weights in a row."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows, over all leading axes."""
        return self.size // self.n_in if self.n_in else 0

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in a GGUF file."""
        return stored_bytes(self.type, self.size)

    def read_tile(self, rows: tuple[int, int], columns: tuple[int, int]) -> F32:
        """A range of rows and, within them, of columns that are whole blocks: float32."""
        if columns == (0, self.n_in):
            return self.rows(*rows)
        if self.tile is not None:
            return self.tile(*rows, *columns)
        return self.rows(*rows)[:, slice(*columns)]

    def read_runs(self, runs: Sequence[tuple[int, int]], columns: tuple[int, int]) -> F32:
        """Several ranges of rows, one below the other: see `read_tile`."""
        if self.picked is None or len(runs) == 1:
            return joined([self.read_tile(run, columns) for run in runs])
        return self.picked(np.concatenate([np.arange(*run) for run in runs]), *columns)

    def stored(self, start: int, stop: int) -> U8:
        """Rows start..stop as they lie in the file: (stop - start, n_bytes) uint8.

        ValueError where those are not what `rows` tells: decoded, turned or put in another order.
        """
        if self.raw is None:
            raise ValueError(f"{self.name} has no stored bytes")
        return self.raw(start, stop)

    def scaled(self, scales: F32) -> "Tensor":
        """The tensor with each of its matrices multiplied by a scale: (n_mat,) float32."""
        n_out = self.n_rows // len(scales)

        def times(values: F32, start: int, stop: int) -> F32:
            return values * scales[np.arange(start, stop) // n_out][:, None]

        def rows(start: int, stop: int) -> F32:
            return times(self.rows(start, stop), start, stop)

        def tile(start: int, stop: int, first: int, last: int) -> F32:
            return times(self.read_tile((start, stop), (first, last)), start, stop)

        return replace(self, rows=rows, tile=tile, scales=scales)

    def derived(
        self,
        rows: Callable[[int, int], F32],
        *,
        tile: Callable[[int, int, int, int], F32] | None = None,
        type: str | None = None,
        name: str | None = None,
    ) -> "Tensor":
        """A tensor of this shape with other weights: nothing that read the old ones is left."""
        kept = "F32" if self.type in SCALED else self.type  # its blocks say nothing without scales
        return Tensor(name or self.name, self.shape, type or kept, rows, tile=tile)

    def read(self) -> F32:
        """All weights as float32 in the tensor's shape."""
        return self.rows(0, self.n_rows).reshape(self.shape)


@dataclass(frozen=True)
class Model:
    """Metadata and tensors of a model, in file order.

    notes: what reading it left out or took from elsewhere, a line each. converted_from: the folder
    of which another program made the file at `path`.
    """

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    converted_from: Path | None = None

    @property
    def origin(self) -> Path:
        """What the user gave, after which outputs are named."""
        return self.converted_from or self.path

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors as stored, without header and padding."""
        return sum(t.n_bytes for t in self.tensors.values())

    @cached_property
    def architecture(self) -> str:
        """`general.architecture`, or "unknown"."""
        return str(self.get("general.architecture", "unknown"))

    @property
    def instead(self) -> str:
        """What a file is that holds no network, and what to do with it; "" where it holds one."""
        return _NO_NETWORKS.get(str(self.get("general.type")), "")

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value as a Python object; {arch} in the key stands for the architecture."""
        if "{arch}" in key:
            key = key.replace("{arch}", self.architecture)
        return self.metadata[key].decode() if key in self.metadata else default
