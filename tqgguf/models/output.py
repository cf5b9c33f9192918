"""Write a file in place under `NAME.partial` and give it its name only when it is whole."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tqgguf.errors import OutputError
from tqgguf.kernels.dtypes import U8
from tqgguf.models.layout import Layout


def partial_path(path: Path) -> Path:
    """Where an unfinished output lives."""
    return path.with_name(path.name + ".partial")


def check_output(path: Path, *, inputs: list[Path], force: bool) -> None:
    """Refuse an output that is an input, exists already, or has no folder.

    Raises OutputError.
    """
    if path.exists() and any(p.exists() and path.samefile(p) for p in inputs):
        raise OutputError(f"{path}: the output is the input; choose another with --output")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected the name of a file")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; overwrite it with --force")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist")


class OutputFile:
    """A file of known layout whose parts arrive in any order, from any thread."""

    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._file, self._layout, self._lock = file, layout, threading.Lock()

    def write(self, name: str, data: U8, *, row: int, row_bytes: int, begin: int) -> None:
        """Write rows of a tensor: data (n, width) uint8 at byte `begin` of rows row, row+1, ...."""
        start = self._layout.offsets[name] + row * row_bytes + begin
        with self._lock:
            if data.shape[1] == row_bytes:
                self._put(start, data.tobytes())
                return
            for i, part in enumerate(data):
                self._put(start + i * row_bytes, part.tobytes())

    def _put(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        self._file.write(data)


@contextmanager
def open_output(path: Path, layout: Layout) -> Iterator[OutputFile]:
    """Create the file at its full size; rename it on success, delete it on any failure.

    Raises OutputError where the disk is full or the folder cannot be written.
    """
    unfinished = partial_path(path)
    try:
        with unfinished.open("wb") as file:
            _reserve(file, layout)
            yield OutputFile(file, layout)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OutputError(f"{path}: {_reason(error, layout.size)}") from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _reserve(file: BinaryIO, layout: Layout) -> None:
    """Take the whole space now, so that a full disk is found before the work and not after."""
    file.write(layout.header)
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, layout.size)
    else:
        file.truncate(layout.size)


def _reason(error: OSError, size: int) -> str:
    return f"{(error.strerror or str(error)).lower()} (the output takes {size / 1e6:,.1f} MB)"
