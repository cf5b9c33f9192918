"""Arrays that everybody who works on a calibration sees: mapped files of one folder.

A file is a short header and the array. One of the same name and shape is written over in place,
which costs neither system nor disk anything. A desk does not outlive the calibration.
"""

import math
import mmap
import os
import pickle
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tqgguf.errors import OutputError
from tqgguf.machine.devices import CPU, Device
from tqgguf.machine.folders import own_folder

_HEADER = struct.Struct("<8s7q")  # type, number of axes, axes; 64 bytes, or vectors are not aligned
_MOST_AXES = 6


@dataclass(frozen=True)
class Sizes:
    """How much is worked on at a time; results depend on it in their last bits.

    tokens: that go through a layer. tile: the columns of the inputs that are multiplied with each
    other, at most; inputs are cut into three tiles where that leaves `narrowest` to each, and
    tokens into runs until a sum of their products has so many `sums`, but in runs of `run` tokens
    and to `summed` numbers at the most. rows, pieces, fewest: the rows of matrices that share their
    inputs are cut into pieces for rounding, of at most so many rows, and into so many pieces where
    that leaves the fewest rows to each; awaited: the fewest where everybody waits for them. slots:
    how many layers are in work at once, at most. looked_up: tokens of which the token table's rows
    are read at once.
    """

    tokens: int = 512
    tile: int = 320
    narrowest: int = 192
    sums: int = 48
    run: int = 1024
    summed: int = 1 << 22
    rows: int = 1024
    pieces: int = 16
    fewest: int = 192  # calls for fewer cost half as much as what they do, or more
    awaited: int = 64
    holds: bool = True
    slots: int = 3
    looked_up: int = 1 << 13

    def edges(self, n_in: int) -> list[int]:
        """Where columns are cut into tiles of about the same size."""
        count = max(-(-n_in // self.tile), min(3, n_in // self.narrowest))
        return [n_in * t // count for t in range(count + 1)]

    def count(self, rows: int, of: float, *, is_awaited: bool = False) -> int:
        """Into how many pieces rows are cut where so many, these among them, share the work."""
        fewest = self.awaited if is_awaited else self.fewest
        size = max(fewest, min(self.rows, of / self.pieces))
        return max(1, -(-rows // self.rows), round(rows / size))


SIZES = Sizes()


@dataclass(frozen=True)
class Desk:
    """The arrays in a folder, by name."""

    folder: Path
    device: Device = CPU
    sizes: Sizes = SIZES

    def make(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Any:
        """An array that is to be written, whatever is in it now.

        Raises OutputError where the disk has no room: a page of a mapped file without any would
        kill whoever writes to it.
        """
        head = _header(shape, np.dtype(dtype))
        n_bytes = len(head) + math.prod(shape) * np.dtype(dtype).itemsize
        with self._writing(name) as file:
            if os.fstat(file).st_size != n_bytes:
                os.ftruncate(file, n_bytes)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file, 0, n_bytes)
            _write(file, head)
        return self.change(name)

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Put an array on the desk. Raises OutputError where the disk has no room."""
        whole = np.ascontiguousarray(array)
        head = _header(whole.shape, whole.dtype)
        with self._writing(name) as file:
            if os.fstat(file).st_size != len(head) + whole.nbytes:
                os.ftruncate(file, 0)
            _write(file, head)
            if whole.size:
                _write(file, whole.data.cast("B"))

    def put_rows(self, name: str, rows: NDArray[Any], begin: int, n_rows: int) -> None:
        """Put rows `begin` and after of an array of n_rows, of which others put the rest.

        Raises OutputError where the disk has no room.
        """
        part = np.ascontiguousarray(rows)
        head = _header((n_rows, *part.shape[1:]), part.dtype)
        row = part.nbytes // max(1, len(part))
        with self._writing(name) as file:
            if os.fstat(file).st_size != len(head) + n_rows * row:
                os.ftruncate(file, len(head) + n_rows * row)
                _write(file, head)
            os.lseek(file, len(head) + begin * row, os.SEEK_SET)
            if part.size:
                _write(file, part.data.cast("B"))

    def put_parts(self, name: str, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]) -> None:
        """Put an array that comes in runs of rows, its last axis but one after the other."""
        self.make(name, shape)
        at = _HEADER.size
        for part in parts:
            whole = np.ascontiguousarray(part, np.float32)
            with self._writing(name) as file:
                os.lseek(file, at, os.SEEK_SET)
                _write(file, whole.data.cast("B"))
            at += whole.nbytes

    def get(self, name: str) -> NDArray[Any]:
        """An array, to be read."""
        return self._mapped(name, mmap.ACCESS_READ)

    def change(self, name: str) -> NDArray[Any]:
        """An array, of which a part is to be written."""
        return self._mapped(name, mmap.ACCESS_WRITE)

    def drop(self, name: str) -> None:
        """An array is not read again: its file is written over by the next of its name."""

    def put_object(self, name: str, value: object) -> None:
        """Something that is no array. Raises OutputError where the disk has no room."""
        with self._writing(name) as file:
            os.ftruncate(file, 0)
            _write(file, pickle.dumps(value))

    def get_object(self, name: str) -> Any:
        """What was put there."""
        return pickle.loads((self.folder / name).read_bytes())

    def _mapped(self, name: str, access: int) -> NDArray[Any]:
        flags = os.O_RDONLY if access == mmap.ACCESS_READ else os.O_RDWR
        try:
            file = os.open(self.folder / name, flags | _BINARY)
        except FileNotFoundError as error:
            raise _removed(self.folder) from error
        try:
            memory = mmap.mmap(file, 0, access=access)
        finally:
            os.close(file)
        kind, axes, *shape = _HEADER.unpack_from(memory)
        dtype = np.dtype(kind.rstrip(b"\0").decode())
        if 0 in shape[:axes]:
            return np.empty(shape[:axes], dtype)
        return np.frombuffer(memory, dtype, offset=_HEADER.size).reshape(shape[:axes])

    @contextmanager
    def _writing(self, name: str) -> Iterator[int]:
        path = self.folder / name
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY)
            try:
                yield file
            finally:
                os.close(file)
        except OSError as error:
            raise _no_room(path, error) from error


_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows


def _header(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> bytes:
    axes = [*shape, *[0] * (_MOST_AXES - len(shape))]
    return _HEADER.pack(dtype.str.encode(), len(shape), *axes)


def _write(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _removed(folder: Path) -> OutputError:
    return OutputError(
        f"{folder}: somebody has removed files that a calibration works with; the same command "
        "goes on with the matrices that are kept"
    )


def _no_room(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: {(error.strerror or str(error)).lower()}; calibration needs room for its arrays: "
        "set XDG_CACHE_HOME to a folder on a disk that has it"
    )


@contextmanager
def open_desk(root: Path | None, sizes: Sizes = SIZES) -> Iterator[Desk]:
    """A desk of its own below `root` (None: the folder for temporary files); see `own_folder`.

    Raises OutputError where there can be none.
    """
    with ExitStack() as stack:
        try:
            if root is not None:
                root.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(own_folder(root))
        except OSError as error:
            raise _no_room(root or Path(gettempdir()), error) from error
        yield Desk(folder, sizes=sizes)
