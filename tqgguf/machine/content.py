"""Names for what files and arrays hold, so that a cache is asked for content, not for paths."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def digest(parts: Iterable[bytes | NDArray[Any]]) -> str:
    """A hash of 64 bits, in hexadecimal, of bytes and of arrays in their own order."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
    return state.hexdigest()


def content_key(files: Sequence[Path], *said: object) -> str:
    """A hash of 128 bits of what is in the files and of the representation of all else."""
    state = hashlib.sha256(repr(said).encode())
    for path in files:
        stat = path.stat()
        state.update(_file_digest(path, stat.st_size, stat.st_mtime_ns))
    return state.hexdigest()[:32]


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, modified: int) -> bytes:  # noqa: ARG001  when to read anew
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
