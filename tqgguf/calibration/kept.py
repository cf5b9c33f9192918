"""Arrays that outlive the process, in a folder of the user's cache.

An entry is a file of arrays in NumPy's format, one after the other, and a CRC-32 of its name and
them all. It appears under its name when it is whole; an entry that is damaged counts as absent, so
whoever kept it computes it again.
"""

import math
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tqgguf.errors import OutputError
from tqgguf.kernels.dtypes import U8
from tqgguf.machine.cache import prune, size_on_disk
from tqgguf.output.whole import whole_file

LIMIT = 8 << 30  # bytes of all folders together; the least recently used go first
STATISTICS = 4 << 30  # bytes of what one model computes on one text
_FREE_SHARE = 4  # a limited folder takes at most one of so many free bytes
_CHECKSUM = 4  # bytes at the end of an entry
_LONGEST_HEADER = 1 << 10  # bytes before an array's data
_SUFFIX = ".kept"

Arrays = Sequence[NDArray[Any]]


class Kept:
    """A folder of entries.

    room: bytes that it may hold, and then not too many of the free ones (None: no limit). Of what
    is left of it every process that is given the folder takes one of `shares`.
    """

    def __init__(self, folder: Path, *, room: int | None = None, shares: int = 1) -> None:
        self.folder, self.room, self.shares = folder, room, shares
        self._left = math.inf
        if room is not None:
            spare = shutil.disk_usage(folder).free // _FREE_SHARE
            self._left = min(spare, room - size_on_disk(folder)) // shares
        self._lock = threading.Lock()
        self._sound: dict[str, tuple[int, int]] = {}  # what was checked or written here

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the folder once, however often it is given it."""
        return _opened, (self.folder, self.room, self.shares)

    def read(self, name: str) -> list[NDArray[Any]] | None:
        """An entry's arrays, mapped from the disk; None where it is absent or damaged."""
        try:
            data = _mapped(self._path(name))
        except (OSError, ValueError):  # ValueError: an empty file
            return None
        state = _state(self._path(name))
        if state is None or state != self._sound.get(name):
            if self._checksum(name, data[:-_CHECKSUM]) != data[-_CHECKSUM:].tobytes():
                return None
            self._note(name, state)
        return list(_arrays(data[:-_CHECKSUM]))

    def write(self, name: str, arrays: Arrays) -> None:
        """Keep an entry if there is room for it."""
        if not self._take(sum(a.nbytes for a in arrays)):
            return
        # a full disk, say: what is not kept is computed again
        with suppress(OSError):
            with whole_file(self._path(name)) as scratch:
                self._write(name, scratch, arrays)
            self._note(name, _state(self._path(name)))

    def once(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """An entry's arrays, made and kept if they are not there."""
        found = self.read(name)
        if found is not None:
            return found
        made = make()
        self.write(name, made)
        return made

    def _note(self, name: str, state: tuple[int, int] | None) -> None:
        """Not to check it again as long as the file is this one."""
        if state is not None:
            self._sound[name] = state

    def _take(self, n_bytes: int) -> bool:
        with self._lock:
            fits = n_bytes <= self._left
            self._left -= n_bytes if fits else 0
        return fits

    def _write(self, name: str, path: Path, arrays: Arrays) -> None:
        with path.open("wb") as file:
            for array in arrays:
                npy.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
            file.flush()
            file.write(self._checksum(name, _mapped(path)))

    def _checksum(self, name: str, data: U8) -> bytes:
        """Of what an entry is called as well: another's file, or one of zeros, does not do."""
        called = zlib.crc32(f"{self.folder.name}/{name}".encode())
        return zlib.crc32(data.data, called).to_bytes(_CHECKSUM, "little")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"


@lru_cache(maxsize=8)
def _opened(folder: Path, room: int | None, shares: int) -> Kept:
    return Kept(folder, room=room, shares=shares)


def open_kept(root: Path, key: str, *, room: int | None = None, shares: int = 1) -> Kept:
    """The folder of a key below `root`, from now on the most recently used one.

    Raises OutputError where it cannot be made.
    """
    folder = root / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: {(error.strerror or str(error)).lower()}; calibration keeps its results "
            "there: set XDG_CACHE_HOME to a folder on a disk with room"
        ) from error
    prune(root, limit=LIMIT, keep=key, reserved=room or 0)
    return Kept(folder, room=room, shares=shares)


def keep(root: Path, key: str, name: str, make: Callable[[], Arrays]) -> Arrays:
    """An entry's arrays, of the folder of a key below `root`; made anew where nothing can be kept.

    That is so where the user's cache cannot be written.
    """
    try:
        kept = open_kept(root, key)
    except OutputError:
        return make()
    return kept.once(name, make)


def _state(path: Path) -> tuple[int, int] | None:
    """Which file is there, and when it was written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _mapped(path: Path) -> U8:
    return np.asarray(np.memmap(path, np.uint8, "r"))


def _arrays(data: U8) -> Iterator[NDArray[Any]]:
    """The arrays in an entry's bytes, in the order in which they were given."""
    while data.size:
        header = BytesIO(data[:_LONGEST_HEADER].tobytes())
        npy.read_magic(header)
        shape, _, dtype = npy.read_array_header_1_0(header)
        begin = header.tell()
        end = begin + math.prod(shape) * dtype.itemsize
        yield data[begin:end].view(dtype).reshape(shape)
        data = data[end:]
