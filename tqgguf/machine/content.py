"""Names for what files and arrays hold, so that a cache is asked for content, not for paths."""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PART = 1 << 23  # bytes read at a time: before each a busy interpreter is waited for


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
        state.update(_content(path).digest())
    return state.hexdigest()[:32]


def expect_content(files: Sequence[Path]) -> None:
    """Read files whose key will be asked for, while this process waits for something else."""

    def read() -> None:
        with suppress(OSError):  # whoever asks is told
            for path in files:
                _content(path).digest()

    Thread(target=read, daemon=True).start()


class _Content:
    """What is in a file, read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._digest = path, Lock(), b""

    def digest(self) -> bytes:
        with self._lock:
            if not self._digest:
                self._digest = self._hashed()
        return self._digest

    def _hashed(self) -> bytes:
        state, part = hashlib.sha256(), bytearray(_PART)
        with self._path.open("rb", buffering=0) as file:
            while count := file.readinto(part):
                state.update(memoryview(part)[:count])
        return state.digest()


def _content(path: Path) -> _Content:
    stat = path.stat()
    return _content_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _content_of(path: Path, size: int, modified: int) -> _Content:  # noqa: ARG001  when to read anew
    return _Content(path)
