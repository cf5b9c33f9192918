"""GGUF metadata values: kept as their exact bytes, decoded only when somebody asks.

A value that nobody touches (a tokenizer's 150,000 strings, arrays of arrays) is carried from the
input to the output byte for byte.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType as Type

SCALARS = {
    Type.UINT8: "<B",
    Type.INT8: "<b",
    Type.UINT16: "<H",
    Type.INT16: "<h",
    Type.UINT32: "<I",
    Type.INT32: "<i",
    Type.FLOAT32: "<f",
    Type.BOOL: "<?",
    Type.UINT64: "<Q",
    Type.INT64: "<q",
    Type.FLOAT64: "<d",
}


@dataclass(frozen=True)
class Value:
    """One metadata value: its GGUF type and its little-endian payload."""

    type: Type
    raw: bytes

    def decode(self) -> Any:
        """The value as a Python number, bool, str or (nested) list."""
        return _decode(self.type, self.raw, 0)[0]

    @property
    def count(self) -> int:
        """The items of an array, without decoding them; 0 of anything else."""
        return int(struct.unpack_from("<IQ", self.raw)[1]) if self.type == Type.ARRAY else 0


def encode(value: Any, type: Type | None = None) -> Value:
    """Make a Value from a Python object or a NumPy array of numbers.

    Without `type`: bool, str, int (UINT32 where it fits, else INT64), float (FLOAT32), and lists of
    one of those.
    """
    if isinstance(value, np.ndarray):
        item = Type[value.dtype.name.upper()]
        payload = value.astype(value.dtype.newbyteorder("<")).tobytes()
        return Value(Type.ARRAY, struct.pack("<IQ", item, value.size) + payload)
    if isinstance(value, list | tuple):
        if value and type in (None, Type.STRING) and all(isinstance(v, str) for v in value):
            return _encode_strings(value)
        items = [encode(v, type) for v in value]
        item = items[0].type if items else (type or Type.STRING)
        if any(v.type != item for v in items):
            raise ValueError("an array's values must have one type")
        return Value(
            Type.ARRAY, struct.pack("<IQ", item, len(items)) + b"".join(v.raw for v in items)
        )
    type = type or _natural_type(value)
    if type == Type.STRING:
        text = _utf8(value)
        return Value(type, struct.pack("<Q", len(text)) + text)
    return Value(type, struct.pack(SCALARS[type], value))


def _utf8(text: str) -> bytes:
    """UTF-8, whatever the text: what a file name or a JSON file has that is none is escaped."""
    return text.encode(errors="backslashreplace")


def _encode_strings(texts: Sequence[str]) -> Value:
    """Many strings at once: a vocabulary has some 100,000."""
    parts = [struct.pack("<IQ", Type.STRING, len(texts))]
    for text in texts:
        raw = _utf8(text)
        parts += (len(raw).to_bytes(8, "little"), raw)
    return Value(Type.ARRAY, b"".join(parts))


def _natural_type(value: Any) -> Type:
    if isinstance(value, bool):
        return Type.BOOL
    if isinstance(value, str):
        return Type.STRING
    if isinstance(value, int):
        return Type.UINT32 if 0 <= value < 2**32 else Type.INT64
    if isinstance(value, float):
        return Type.FLOAT32
    raise TypeError(f"no GGUF type for {value!r}")


def _decode(type: Type, raw: bytes, at: int) -> tuple[Any, int]:
    """Decode one payload that begins at `at`; returns the value and where it ends."""
    if type == Type.STRING:
        (length,) = struct.unpack_from("<Q", raw, at)
        return raw[at + 8 : at + 8 + length].decode("utf-8", "replace"), at + 8 + length
    if type == Type.ARRAY:
        item, count = struct.unpack_from("<IQ", raw, at)
        return _decode_items(Type(item), raw, at + 12, count)
    return struct.unpack_from(SCALARS[type], raw, at)[0], at + struct.calcsize(SCALARS[type])


def _decode_items(item: Type, raw: bytes, at: int, count: int) -> tuple[list[Any], int]:
    if item in SCALARS:
        values = np.frombuffer(raw, np.dtype(SCALARS[item]), count, at)
        return values.tolist(), at + values.nbytes
    items = []
    for _ in range(count):
        value, at = _decode(item, raw, at)
        items.append(value)
    return items, at
