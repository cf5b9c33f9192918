"""Lay out a GGUF file: every byte of the header and every tensor's place, before anything is read.

Knowing all offsets first is what lets tensors be written in any order, by any worker.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from gguf import GGUFValueType as Type

from tqgguf.ggml import TYPES
from tqgguf.models.gguf import DEFAULT_ALIGNMENT, MAGIC, SPLIT_RUN, VERSIONS
from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import stored_bytes


@dataclass(frozen=True)
class TensorInfo:
    """A tensor to be written; shape in NumPy's order, type a GGUF name."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of shape[-1] weights."""
        return stored_bytes(self.type, self.shape[-1])

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class Layout:
    """A file's header, its tensors, where each begins (bytes from the file's begin), its size."""

    header: bytes
    tensors: Mapping[str, TensorInfo]
    offsets: Mapping[str, int]
    size: int


@dataclass(frozen=True)
class Split:
    """How large a shard may be; None is no limit, and no limit at all is one plain file.

    max_size counts bytes of aligned tensor data, as llama-gguf-split does. A tensor larger than
    that has a shard of its own.
    """

    max_size: int | None = None
    max_tensors: int | None = None

    def __bool__(self) -> bool:
        return self.max_size is not None or self.max_tensors is not None


def lay_out(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> Layout:
    """Compute the layout of a GGUF v3 file; general.alignment in the metadata is honoured."""
    alignment = _alignment(metadata)
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [encode(key).raw, struct.pack("<I", value.type), value.raw]
    offsets, offset = {}, 0
    for tensor in tensors:
        offsets[tensor.name] = offset
        parts.append(_table_line(tensor, offset))
        offset += _aligned(tensor.n_bytes, alignment)
    header = b"".join(parts)
    header += bytes(_aligned(len(header), alignment) - len(header))
    return Layout(
        header,
        {t.name: t for t in tensors},
        {name: len(header) + o for name, o in offsets.items()},
        len(header) + offset,
    )


def lay_out_shards(
    metadata: Mapping[str, Value], tensors: Sequence[TensorInfo], split: Split, *, run: str = ""
) -> list[Layout]:
    """Compute the layouts of the shards of a split output.

    The first carries all metadata, the others what a loader needs to know that they belong to it:
    split.no, split.count and split.tensors.count, as llama-gguf-split writes them. run: a text that
    tells these shards from those of other runs, whose names and numbers may be the same.
    """
    shards = _shards(tensors, split, _alignment(metadata))
    common = {
        "split.count": encode(len(shards), Type.UINT16),
        "split.tensors.count": encode(len(tensors), Type.INT32),
        SPLIT_RUN: encode(run),
    }
    needed = {k: v for k, v in metadata.items() if k == "general.alignment"}
    return [
        lay_out(
            {**(needed if i else metadata), "split.no": encode(i, Type.UINT16), **common}, shard
        )
        for i, shard in enumerate(shards)
    ]


def _shards(
    tensors: Sequence[TensorInfo], split: Split, alignment: int
) -> list[Sequence[TensorInfo]]:
    """Cut the tensors, in their order, into shards."""
    begins, size = [0], 0
    for i, tensor in enumerate(tensors):
        n_bytes = _aligned(tensor.n_bytes, alignment)
        is_full = split.max_size is not None and size + n_bytes > split.max_size
        if i > begins[-1] and (is_full or i - begins[-1] == split.max_tensors):
            begins.append(i)
            size = 0
        size += n_bytes
    return [tensors[a:b] for a, b in zip(begins, [*begins[1:], len(tensors)], strict=True)]


def _alignment(metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment")
    return DEFAULT_ALIGNMENT if value is None else int(value.decode())


def _table_line(tensor: TensorInfo, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
    number = TYPES[tensor.type].number
    return encode(tensor.name).raw + sizes + struct.pack("<IQ", number, offset)


def _aligned(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
