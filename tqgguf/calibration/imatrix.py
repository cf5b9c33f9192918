"""Importance matrices: the mean square of every input, as llama-imatrix writes it.

Two file formats are read, GGUF and the older one of bare numbers; GGUF is written. A file of ours
also records the rotation its numbers were taken in, because the inputs of a rotated matrix are
other inputs.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tqgguf.errors import FileFormatError, PlanError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.gguf import MAGIC, read_gguf
from tqgguf.models.metadata import encode
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.output.whole import whole_file
from tqgguf.rotation.rotation import NO_ROTATION, Rotation
from tqgguf.rotation.vectors import is_balance

_SUMS, _COUNTS = ".in_sum2", ".counts"
_BASIS = "tqgguf.imatrix.basis"
_LONGEST_NAME = 1024
UNROTATED = "none"  # the basis of a model as it is


@dataclass(frozen=True)
class Imatrix:
    """Sums of squares of every matrix's inputs, and over how many inputs.

    sums: name -> (n_mat, n_in) float32, counts: name -> (n_mat,) float32, n_mat being the number of
    stacked experts or 1. basis: see `basis_of`.
    """

    sums: Mapping[str, F32] = field(repr=False)
    counts: Mapping[str, F32] = field(repr=False)
    basis: str
    datasets: Sequence[str] = ()
    chunk_size: int = 0

    def importance(self, name: str) -> F32 | None:
        """Mean squares, (n_mat, n_in) float32, ones for an expert that saw nothing; or None."""
        if name not in self.sums:
            return None
        counts = self.counts[name][:, None]
        means = self.sums[name] / np.maximum(counts, np.float32(1))
        importance: F32 = np.where(counts > 0, means, np.float32(1)).astype(np.float32)
        return importance


def basis_of(rotation: Rotation) -> str:
    """A text that is equal for rotations under which matrices have the same inputs."""
    if rotation.mode == "none":
        return "none"
    vectors = (step.vector for sides in rotation.sides.values() for step in sides.columns)
    balanced = "balanced" if any(v and is_balance(v) for v in vectors) else "plain"
    shape = (rotation.kind, rotation.block, rotation.value_block, rotation.seed)
    parts = (rotation.mode, *shape, balanced)
    return " ".join(map(str, parts))


def check_basis(imatrix: Imatrix, rotation: Rotation, path: Path) -> None:
    """Refuse an imatrix taken in another rotated basis than the plan's. Raises PlanError.

    One of the unrotated model serves under every rotation (rotation/energies.py).
    """
    wanted = basis_of(rotation)
    if imatrix.basis not in (UNROTATED, wanted):
        raise PlanError(
            f"{path}: taken in the basis {imatrix.basis!r}, but the matrices are quantized in "
            f"{wanted!r}; give one of the unrotated model, which serves under every rotation"
        )


def matched(imatrix: Imatrix, shapes: Mapping[str, tuple[int, ...]], path: Path) -> Imatrix:
    """The entries of tensors of these shapes, a row for each expert.

    The legacy format strings the experts of a tensor together. Raises PlanError for an entry that
    does not suit its tensor.
    """
    sums, counts = {}, {}
    for name in imatrix.sums.keys() & shapes.keys():
        shape, found = shapes[name], imatrix.sums[name]
        wanted = (shape[0] if len(shape) == 3 else 1, shape[-1])
        if found.shape not in (wanted, (1, wanted[0] * wanted[1])):
            raise PlanError(
                f"{path}: {name} has {_by(found.shape)} importance values, but the tensor needs "
                f"{_by(wanted)}; the file belongs to another model"
            )
        sums[name] = found.reshape(wanted)
        counts[name] = np.broadcast_to(imatrix.counts[name], wanted[:1])
    return replace(imatrix, sums=sums, counts=counts)


def _by(shape: tuple[int, ...]) -> str:
    return str(shape[1]) if shape[0] == 1 else " x ".join(map(str, shape))


def read_imatrix(path: Path) -> Imatrix:
    """Read llama.cpp's importance matrix, GGUF or legacy.

    Raises FileFormatError for a file that is neither, is cut short, or holds negative numbers.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise FileFormatError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    imatrix = _read_gguf(path) if magic == MAGIC else _read_legacy(path)
    for name, sums in imatrix.sums.items():
        if not (np.isfinite(sums).all() and (sums >= 0).all()):
            raise FileFormatError(f"{path}: {name} has sums of squares below 0 or not finite")
    return imatrix


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write a GGUF importance matrix that llama-quantize reads."""
    arrays: dict[str, F32] = {}
    for name, sums in imatrix.sums.items():
        arrays[name + _SUMS] = np.ascontiguousarray(sums, np.float32)
        arrays[name + _COUNTS] = np.ascontiguousarray(imatrix.counts[name], np.float32)[:, None]
    largest = max((float(c.max()) for c in imatrix.counts.values()), default=0.0)
    metadata = {
        "general.type": encode("imatrix"),
        "imatrix.datasets": encode(list(imatrix.datasets)),
        "imatrix.chunk_count": encode(int(largest) // max(1, imatrix.chunk_size)),
        "imatrix.chunk_size": encode(imatrix.chunk_size),
        _BASIS: encode(imatrix.basis),
    }
    layout = lay_out(metadata, [TensorInfo(n, a.shape, "F32") for n, a in arrays.items()])
    data = bytearray(layout.size)
    data[: len(layout.header)] = layout.header
    for name, array in arrays.items():
        begin = layout.offsets[name]
        data[begin : begin + array.nbytes] = array.astype("<f4").tobytes()
    with whole_file(path) as scratch:
        scratch.write_bytes(data)


def _read_gguf(path: Path) -> Imatrix:
    model = read_gguf(path)
    sums, counts = {}, {}
    for key, tensor in model.tensors.items():
        if not key.endswith(_SUMS):
            continue
        name = key.removesuffix(_SUMS)
        if name + _COUNTS not in model.tensors:
            raise FileFormatError(f"{path}: {name} has sums but no {_COUNTS}")
        count = model.tensors[name + _COUNTS].read().reshape(-1)
        sums[name], counts[name] = tensor.read().reshape(len(count), -1), count
    if not sums:
        raise FileFormatError(f"{path}: a GGUF file without importance data; expected an imatrix")
    return Imatrix(
        sums,
        counts,
        str(model.get(_BASIS, basis_of(NO_ROTATION))),
        tuple(model.get("imatrix.datasets", [])),
        int(model.get("imatrix.chunk_size", 0)),
    )


def _read_legacy(path: Path) -> Imatrix:
    """int32 entries; each: int32 length, name, int32 calls, int32 values, float32 mean * calls."""
    data, at = path.read_bytes(), 0

    def number() -> int:
        nonlocal at
        if at + 4 > len(data):
            raise FileFormatError(f"{path}: neither a GGUF nor a legacy imatrix: it ends too early")
        at += 4
        return int(struct.unpack_from("<i", data, at - 4)[0])

    sums, counts = {}, {}
    for _ in range(number()):
        length = number()
        if not 0 < length <= _LONGEST_NAME or at + length > len(data):
            raise FileFormatError(f"{path}: neither a GGUF nor a legacy imatrix: a bad name")
        name = data[at : at + length].decode("utf-8", "replace")
        at += length
        calls, size = number(), number()
        if size < 0 or at + 4 * size > len(data):
            raise FileFormatError(f"{path}: {name} claims {size} values, more than the file holds")
        sums[name] = np.frombuffer(data, "<f4", size, at)[None].astype(np.float32)
        counts[name] = np.array([max(calls, 1)], np.float32)
        at += 4 * size
    if not sums:
        raise FileFormatError(f"{path}: neither a GGUF nor a legacy imatrix: it holds no entries")
    return Imatrix(sums, counts, basis_of(NO_ROTATION))
