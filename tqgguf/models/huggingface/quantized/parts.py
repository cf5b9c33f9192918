"""The tensors that hold one quantized matrix, its groups and its scales."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqgguf.errors import FileFormatError
from tqgguf.kernels.dtypes import F32, I64
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.huggingface.stored import RowReader, Stored


@dataclass(frozen=True)
class Parts:
    """The tensors that hold one matrix, by the ends of their names, and the quantizer's settings.

    name: what the matrix is called once it is one tensor.
    """

    name: str
    tensors: Mapping[str, Stored]
    settings: Config

    def matrix(self, end: str) -> Stored:
        """A part with two axes; FileFormatError if it has others."""
        if self.tensors[end].array.ndim != 2:
            raise self.wrong(f"{end} has shape {self.tensors[end].shape}, expected a matrix")
        return self.tensors[end]

    def wrong(self, fact: str) -> FileFormatError:
        """An error about this matrix."""
        return FileFormatError(f"{self.name}: {fact}")


def unpacked_words(words: NDArray[Any], bits: int) -> NDArray[Any]:
    """Unsigned numbers in 32-bit words, lowest first: (n, m) -> (n, m * 32 / bits) int16."""
    shifts = np.arange(0, 32 // bits * bits, bits, dtype=np.uint32)
    numbers = np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts
    flat = numbers.reshape(len(words), words.shape[1] * len(shifts))
    return (flat & np.uint32((1 << bits) - 1)).astype(np.int16)


def groups_of(parts: Parts, n_in: int, n_groups: int, end: str) -> I64:
    """The group of each input: (n_in,); listed in the tensor `end` if there is one."""
    listed = parts.tensors.get(end)
    if listed is None or (listed.integers() < 0).all():
        if n_groups == 0 or n_in == 0:
            raise parts.wrong(f"{n_groups} groups of {n_in} inputs")
        return np.arange(n_in) // -(-n_in // n_groups)
    groups = listed.integers().astype(np.int64)
    if groups.shape != (n_in,) or groups.min() < 0 or groups.max() >= n_groups:
        raise parts.wrong(f"{end} does not give each of {n_in} inputs one of {n_groups} groups")
    return groups


def scale_rows(
    parts: Parts,
    shape: tuple[int, int],
    end: str,
    *,
    block: tuple[int, int] | None = None,
    grouped: bool = False,
) -> RowReader:
    """Scales (or zero points) of rows start..stop, broadcastable to (stop - start, n_in).

    They are one number, one a row, one a block of rows and columns, or, grouped, one for each of
    some runs of a row's inputs.
    """
    stored = parts.tensors[end]
    values = stored.array.reshape(-1, 1) if stored.array.ndim == 1 else stored.array
    stored = replace(stored, array=values)
    if values.size == 1:
        return lambda *_: _numbers(stored, ...).reshape(1, 1)
    blocks = {(1, shape[1])} | ({block} if block else set())
    grids = {(-(-shape[0] // b[0]), -(-shape[1] // b[1])): b for b in blocks}
    if grouped and values.ndim == 2 and values.shape[0] == shape[0] and values.shape[1] > 0:
        grids.setdefault(values.shape, (1, -(-shape[1] // values.shape[1])))
    if values.shape not in grids:
        raise parts.wrong(
            f"has shape {shape} and a scale of shape {values.shape}; expected one number"
            f"{''.join(f' or {grid}' for grid in sorted(grids))}"
        )
    height, width = grids[values.shape]
    columns = np.arange(shape[1]) // width
    if grouped and ".weight_g_idx" in parts.tensors:
        columns = groups_of(parts, shape[1], values.shape[1], ".weight_g_idx")

    def rows(start: int, stop: int) -> F32:
        lines = _numbers(stored, slice(start // height, -(-stop // height)))
        return lines[np.arange(start, stop) // height - start // height][:, columns]

    return rows


def _numbers(stored: Stored, where: Any) -> F32:
    if stored.dtype.startswith("I"):
        return stored.integers(where).astype(np.float32)
    return stored.values(where)
