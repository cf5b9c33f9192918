"""Read GGUF files: the header checked against the file's size, the weights memory-mapped.

gguf-py's GGUFReader is the oracle in the tests and not used here: it trusts every length in the
header and builds one array object per metadata string (docs/decisions/0002).
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType as Type

from tqgguf.errors import FileFormatError
from tqgguf.ggml import NAMES, TYPES, dequantize
from tqgguf.kernels.dtypes import F32, I64, U8
from tqgguf.kernels.halves import single_from_half
from tqgguf.models.content import what_it_is
from tqgguf.models.mapped import give_back, map_file
from tqgguf.models.metadata import SCALARS, Value
from tqgguf.models.model import SCALED, Model, Tensor, scale_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
SHARD_NAME = re.compile(r"^(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")
SPLIT_RUN = "tqgguf.split.run"  # in every shard, what tells those of one run from another's
_MAX_NESTING = 8  # arrays of arrays; llama.cpp itself refuses any


@dataclass(frozen=True)
class _Entry:
    """One line of the tensor table; shape in NumPy's order, offset from the file's begin."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int


def read_gguf(path: Path) -> Model:
    """Open a GGUF file, or all shards of a split one given the first.

    Raises FileFormatError where the header and the file do not agree.
    """
    paths = _shard_paths(path)
    shards = [_Shard(p) for p in paths]
    for i, shard in enumerate(shards):
        shard.check_place(i, len(paths))
        if shard.metadata.get(SPLIT_RUN) != shards[0].metadata.get(SPLIT_RUN):
            raise FileFormatError(f"{shard.path}: belongs to another run than {paths[0].name}")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for tensor in shard.tensors():
            if tensor.name in tensors:
                raise FileFormatError(f"{shard.path}: tensor {tensor.name!r} appears twice")
            tensors[tensor.name] = tensor
    of_shards = ("split.", SPLIT_RUN)
    metadata = {k: v for k, v in shards[0].metadata.items() if not k.startswith(of_shards)}
    expected = shards[0].metadata.get("split.tensors.count")
    if expected is not None and expected.decode() != len(tensors):
        raise FileFormatError(
            f"{path}: the shards hold {len(tensors)} tensors, but split.tensors.count is "
            f"{expected.decode()}; a shard belongs to another run"
        )
    return Model(path, metadata, _with_scales(path, tensors))


def _with_scales(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the scales of whole matrices in them, in place of beside them."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        beside = tensors.get(scale_name(name)) if tensor.type in SCALED else None
        if beside is None:
            continue
        scales = found.pop(beside.name).read().reshape(-1)
        if scales.size != prod(tensor.shape[:-2]) or not np.isfinite(scales).all():
            raise FileFormatError(
                f"{path}: {beside.name} has shape {beside.shape}; expected a finite number for "
                f"each of {prod(tensor.shape[:-2])} matrices"
            )
        found[name] = tensor.scaled(scales)
    return found


def shard_files(path: Path) -> list[Path]:
    """The files that make up the GGUF model at `path`, in order."""
    return _shard_paths(path)


def disk_bytes(path: Path) -> int:
    """Size of a GGUF file, or of all shards of a split one."""
    return sum(shard.stat().st_size for shard in shard_files(path))


def _shard_paths(path: Path) -> list[Path]:
    match = SHARD_NAME.match(path.name)
    if not match:
        return [path]
    count = int(match["count"])
    if int(match["no"]) != 1:
        first = f"{match['stem']}-00001-of-{match['count']}.gguf"
        raise FileFormatError(f"{path}: shard {int(match['no'])} of {count}; give {first}")
    paths = [
        path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)
    ]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise FileFormatError(f"{path}: shard {missing[0]} is missing ({len(missing)} of {count})")
    return paths


class _Cursor:
    """Reads little-endian values from a buffer and never past its end."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int, what: str) -> memoryview:
        """The next `count` bytes."""
        if count > len(self.data) - self.at:
            raise FileFormatError(
                f"{self.path}: truncated in {what}: {count:,} bytes needed at byte {self.at:,}, "
                f"but the file ends at {len(self.data):,}"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str, what: str) -> Any:
        """The next number of a struct code."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def string(self, what: str) -> str:
        """The next length-prefixed UTF-8 string."""
        raw = self.take(self.number("Q", what), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{self.path}: {what} is not UTF-8") from error

    def value(self, what: str) -> Value:
        """The next metadata value, as its exact bytes."""
        type = self._type(what)
        begin = self.at
        self._skip(type, what, 0)
        return Value(type, bytes(self.data[begin : self.at]))

    def _type(self, what: str) -> Type:
        number = self.number("I", what)
        try:
            return Type(number)
        except ValueError:
            raise FileFormatError(f"{self.path}: {what} has unknown value type {number}") from None

    def _skip(self, type: Type, what: str, depth: int) -> None:
        if type in SCALARS:
            self.take(struct.calcsize(SCALARS[type]), what)
        elif type == Type.STRING:
            self.take(self.number("Q", what), what)
        elif depth == _MAX_NESTING:
            raise FileFormatError(f"{self.path}: {what} nests arrays deeper than {_MAX_NESTING}")
        else:
            self._skip_array(what, depth)

    def _skip_array(self, what: str, depth: int) -> None:
        item, count = self._type(what), self.number("Q", what)
        if item in SCALARS:
            self.take(count * struct.calcsize(SCALARS[item]), what)
            return
        self._room_for(count, 8 if item == Type.STRING else 12, what)
        if item == Type.STRING:
            self._skip_strings(count, what)
            return
        for _ in range(count):
            self._skip(item, what, depth + 1)

    def _skip_strings(self, count: int, what: str) -> None:
        """The hot loop of a large vocabulary."""
        data, at, end = self.data, self.at, len(self.data) - 8
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > end:
                break
            at += 8 + unpack(data, at)[0]
        self.take(at - self.at, what)

    def _room_for(self, count: int, smallest: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold, before looping over it."""
        if count * smallest > len(self.data) - self.at:
            raise FileFormatError(
                f"{self.path}: {what} claims {count:,} items, more than the file's "
                f"{len(self.data):,} bytes can hold"
            )

    def count(self, smallest: int, what: str) -> int:
        """The next 64-bit count of items of at least `smallest` bytes each."""
        count: int = self.number("Q", what)
        self._room_for(count, smallest, what)
        return count


class _Shard:
    """One GGUF file: its metadata and its tensor table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = map_file(path)
        cursor = _Cursor(path, self.bytes.data)
        _check_magic(cursor)
        n_tensors = cursor.count(24, "the tensor table")
        n_values = cursor.count(12, "the metadata")
        self.metadata = dict(_metadata(cursor, n_values))
        alignment = _alignment(path, self.metadata)
        entries = [_tensor_line(cursor) for _ in range(n_tensors)]
        begin = -(-cursor.at // alignment) * alignment
        self.entries = [self._place(entry, begin, alignment) for entry in entries]
        self._check_overlaps()

    def check_place(self, index: int, count: int) -> None:
        """Refuse a shard whose own numbers are not those of its name."""
        for key, expected in (("split.no", index), ("split.count", count)):
            value = self.metadata.get(key)
            is_plain_file = count == 1 and key == "split.count" and value is not None
            if value is not None and value.decode() != expected:
                cure = "; open its first shard" if is_plain_file else ""
                raise FileFormatError(
                    f"{self.path}: {key} is {value.decode()}, but the name says {expected}{cure}"
                )

    def tensors(self) -> Iterator[Tensor]:
        """The shard's tensors, lazily read."""
        for e in self.entries:
            rows, tile = partial(_decode_rows, self.bytes, e), partial(_decode_tile, self.bytes, e)
            raw, picked = partial(_copy_rows, self.bytes, e), partial(_decode_picked, self.bytes, e)
            yield Tensor(e.name, e.shape, e.type, rows=rows, raw=raw, tile=tile, picked=picked)

    def _check_overlaps(self) -> None:
        """Refuse tensors that share bytes: a small file could claim any amount of weights."""
        ordered = sorted(self.entries, key=lambda entry: entry.offset)
        for before, entry in pairwise(ordered):
            is_twice = before.name == entry.name  # which has a message of its own
            if before.offset + before.n_bytes > entry.offset and not is_twice:
                raise FileFormatError(
                    f"{self.path}: {entry.name} begins at byte {entry.offset:,}, inside "
                    f"{before.name}"
                )

    def _place(self, entry: _Entry, begin: int, alignment: int) -> _Entry:
        offset = begin + entry.offset
        if entry.offset % alignment or offset + entry.n_bytes > len(self.bytes):
            raise FileFormatError(
                f"{self.path}: {entry.name} needs bytes {offset:,} to {offset + entry.n_bytes:,}, "
                f"but the file ends at {len(self.bytes):,}"
                if entry.offset % alignment == 0
                else f"{self.path}: {entry.name} is not aligned to {alignment} bytes"
            )
        return _Entry(entry.name, entry.shape, entry.type, offset, entry.n_bytes)


def _check_magic(cursor: _Cursor) -> None:
    magic = bytes(cursor.data[:4])
    if magic != MAGIC:
        known = what_it_is(cursor.path) or f"expected {MAGIC!r}"
        raise FileFormatError(f"{cursor.path}: not a GGUF file: it begins with {magic!r}, {known}")
    cursor.at = 4
    version = cursor.number("I", "the header")
    if version not in VERSIONS:
        order = "big-endian" if version >= 2**16 else f"version {version}"
        raise FileFormatError(f"{cursor.path}: GGUF {order}; versions 2 and 3, little-endian, work")


def _metadata(cursor: _Cursor, count: int) -> Iterator[tuple[str, Value]]:
    seen = set()
    for i in range(count):
        key = cursor.string(f"metadata key {i + 1} of {count}")
        if key in seen:
            raise FileFormatError(f"{cursor.path}: metadata key {key!r} appears twice")
        seen.add(key)
        yield key, cursor.value(f"metadata value {key!r}")


def _alignment(path: Path, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment")
    alignment = DEFAULT_ALIGNMENT if value is None else value.decode()
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise FileFormatError(
            f"{path}: general.alignment is {alignment!r}; expected a power of two"
        )
    return alignment


def _tensor_line(cursor: _Cursor) -> _Entry:
    name = cursor.string("the tensor table")
    n_dims = cursor.number("I", name)
    if not 1 <= n_dims <= MAX_DIMS:
        raise FileFormatError(f"{cursor.path}: {name} has {n_dims} dimensions; 1 to 4 work")
    shape = tuple(cursor.number("Q", name) for _ in range(n_dims))[::-1]
    number = cursor.number("I", name)
    type = NAMES.get(number)
    if type is None:
        raise FileFormatError(f"{cursor.path}: {name} has unknown tensor type {number}")
    _, block, size = TYPES[type]
    weights = prod(shape)  # Python integers: no overflow, however hostile
    if not 0 < weights < 2**60 or shape[-1] % block:
        raise FileFormatError(f"{cursor.path}: {name} has shape {shape}, which {type} cannot hold")
    return _Entry(name, shape, type, cursor.number("Q", name), weights // block * size)


def _stored(data: U8, entry: _Entry) -> U8:
    """A tensor's rows where they lie: (n_rows, n_bytes) uint8, mapped."""
    _, block, size = TYPES[entry.type]
    tensor = np.asarray(data)[entry.offset : entry.offset + entry.n_bytes]
    return tensor.reshape(-1, entry.shape[-1] // block * size)


def _copy_rows(data: U8, entry: _Entry, start: int, stop: int) -> U8:
    rows = _stored(data, entry)[start:stop]
    copied = rows.copy()
    give_back(rows)
    return copied


def _decode_rows(data: U8, entry: _Entry, start: int, stop: int) -> F32:
    return _decode_tile(data, entry, start, stop, 0, entry.shape[-1])


def _decode_tile(
    data: U8, entry: _Entry, start: int, stop: int, first_column: int, last_column: int
) -> F32:
    """A range of rows and of columns that are whole blocks: (rows, columns) float32."""
    rows = _stored(data, entry)[start:stop]
    decoded = _decode(_cut(rows, entry, first_column, last_column), entry)
    give_back(rows)
    return decoded


def _decode_picked(
    data: U8, entry: _Entry, numbers: I64, first_column: int, last_column: int
) -> F32:
    """Rows of ascending numbers, and columns that are whole blocks: (rows, columns) float32."""
    rows = _stored(data, entry)
    decoded = _decode(_cut(rows, entry, first_column, last_column)[numbers], entry)
    give_back(rows[numbers[0] : numbers[-1] + 1])
    return decoded


def _cut(rows: U8, entry: _Entry, first_column: int, last_column: int) -> U8:
    """The bytes of columns that are whole blocks."""
    _, block, size = TYPES[entry.type]
    return rows[:, first_column // block * size : last_column // block * size]


def _decode(tile: U8, entry: _Entry) -> F32:
    if entry.type == "F16":
        return single_from_half(tile.view("<f2"))
    dtype = _PLAIN.get(entry.type)
    if dtype is not None:
        return tile.view(dtype).astype(np.float32)
    try:
        return dequantize(tile, entry.type)
    except NotImplementedError:
        raise FileFormatError(
            f"{entry.name}: weights of type {entry.type} cannot be decoded"
        ) from None


_PLAIN = {"F64": "<f8", "F32": "<f4", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
