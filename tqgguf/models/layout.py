"""Lay out a GGUF file: every byte of the header and every tensor's place, before anything is read.

Knowing all offsets first is what lets tensors be written in any order, by any worker.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tqgguf.models.gguf import DEFAULT_ALIGNMENT, MAGIC, VERSIONS
from tqgguf.models.metadata import Value, encode


@dataclass(frozen=True)
class TensorInfo:
    """A tensor to be written; shape in NumPy's order, type a GGUF name."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of shape[-1] weights."""
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.type]]
        return int(self.shape[-1] // block * size)

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class Layout:
    """A file's header, where each tensor begins (bytes from the file's begin), and its size."""

    header: bytes
    offsets: Mapping[str, int]
    size: int


def lay_out(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> Layout:
    """Compute the layout of a GGUF v3 file; general.alignment in the metadata is honoured."""
    alignment = DEFAULT_ALIGNMENT
    if "general.alignment" in metadata:
        alignment = metadata["general.alignment"].decode()
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
        header, {name: len(header) + o for name, o in offsets.items()}, len(header) + offset
    )


def _table_line(tensor: TensorInfo, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
    type = GGMLQuantizationType[tensor.type]
    return encode(tensor.name).raw + sizes + struct.pack("<IQ", type, offset)


def _aligned(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
