"""One tensor as a .safetensors file holds it, and how its rows become float32."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqgguf.errors import FileFormatError
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.kernels.halves import single_from_half
from tqgguf.models.mapped import give_back
from tqgguf.models.model import Tensor

RowReader = Callable[[int, int], F32]


@dataclass(frozen=True)
class Packed:
    """A matrix as ggml stores it. raw: rows of blocks; scales: see `tqgguf.models.Tensor`."""

    type: str
    raw: Callable[[int, int], U8]
    scales: F32 | None


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in its file.

    array: mapped, of any shape: float32, float16, uint16 (bfloat16's bits), integers or an FP8
    type of ml_dtypes; dtype: safetensors' name of it. decoded: for weights that a quantizer packed
    into several tensors, how their rows are read, and shape what they are once read. packed: the
    same as blocks of ggml, where it has a type for them.
    """

    name: str
    dtype: str
    array: NDArray[Any] = field(repr=False)
    decoded: RowReader | None = field(default=None, repr=False)
    shape: tuple[int, ...] = ()
    packed: Packed | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.decoded is None:
            object.__setattr__(self, "shape", self.array.shape)

    def tensor(self) -> Tensor:
        """The weights as a Tensor under their Hugging Face name."""
        if self.decoded is not None:
            if self.packed is None:
                return Tensor(self.name, self.shape, "F32", self.decoded)
            kind, blocks = self.packed.type, self.packed.raw
            return Tensor(
                self.name, self.shape, kind, self.decoded, blocks, scales=self.packed.scales
            )
        self._check_dtype()
        if self.array.ndim > 2:
            raise FileFormatError(f"{self.name}: has {self.array.ndim} axes, expected a matrix")
        matrix = self.array if self.array.ndim == 2 else self.array.reshape(1, -1)

        def raw(start: int, stop: int) -> U8:
            stored = np.asarray(matrix[start:stop])
            copied = stored.view(np.uint8).copy()
            give_back(stored)
            return copied

        gguf_type = self.dtype if self.dtype in ("F32", "F16", "BF16") else "F32"
        is_gguf = self.dtype == gguf_type and matrix.flags.c_contiguous
        shape = self.array.shape or (1,)
        rows = Stored(self.name, self.dtype, matrix).rows
        return Tensor(self.name, shape, gguf_type, rows, raw if is_gguf else None)

    def rows(self, start: int, stop: int) -> F32:
        """Entries start..stop of the first axis as float32."""
        return self.values(slice(start, stop))

    def values(self, where: Any = ...) -> F32:
        """What an index selects, as float32."""
        self._check_dtype()
        part = np.asarray(self.array[where])
        floats = _READ[self.dtype](part)
        give_back(part)
        return floats

    def _check_dtype(self) -> None:
        if self.dtype not in _READ:
            raise FileFormatError(
                f"{self.name}: stored as {self.dtype}, expected one of {', '.join(_READ)}"
            )

    def integers(self, where: Any = ...) -> NDArray[Any]:
        """What an index selects, as stored."""
        part = np.asarray(self.array[where])
        copied = part.copy()
        give_back(part)
        return copied


def _from_bf16(bits: NDArray[Any]) -> F32:
    floats: F32 = np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
    return floats


def _to_float32(values: NDArray[Any]) -> F32:
    floats: F32 = values.astype(np.float32)
    return floats


_READ: dict[str, Callable[[NDArray[Any]], F32]] = {
    "F32": _to_float32,
    "F16": single_from_half,
    "BF16": _from_bf16,
    "F8_E4M3": _to_float32,
    "F8_E5M2": _to_float32,
}
