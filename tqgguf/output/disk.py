"""Bytes on the disk: written in place, read back for a checksum, made durable."""

import errno
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from tqgguf.kernels.dtypes import U8

_BINARY = getattr(os, "O_BINARY", 0)
_READ = 1 << 24  # bytes read at a time for a checksum


@dataclass(frozen=True)
class Slot:
    """The place of one tensor in an unfinished file: any thread or process may write into it."""

    path: Path
    offset: int
    row_bytes: int
    n_bytes: int

    def write(self, data: U8, *, row: int, begin: int = 0) -> None:
        """Write rows row, row + 1, ... : data (n, width) uint8 at byte `begin` of each row."""
        start = self.offset + row * self.row_bytes + begin
        fd = os.open(self.path, os.O_WRONLY | _BINARY)
        try:
            if data.shape[1] == self.row_bytes:
                _put(fd, memoryview(data.tobytes()), start)
            else:
                for i, part in enumerate(data):
                    _put(fd, memoryview(part.tobytes()), start + i * self.row_bytes)
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Bring what this machine has written to the disk."""
        sync(self.path)

    def checksum(self) -> str:
        """CRC-32 of the tensor's bytes as they are in the file; "" where some are missing."""
        crc, left = 0, self.n_bytes
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left and (data := file.read(min(left, _READ))):
                crc = zlib.crc32(data, crc)
                left -= len(data)
        return "" if left else f"{crc:08x}"


def reserve(fd: int, size: int) -> None:
    """Reserve space where the system and the file system can."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _put(fd: int, data: memoryview, offset: int) -> None:
    """Write all of the data at an offset."""
    while data:
        if hasattr(os, "pwrite"):
            count = os.pwrite(fd, data, offset)
        else:
            os.lseek(fd, offset, os.SEEK_SET)
            count = os.write(fd, data)
        data, offset = data[count:], offset + count


def sync(path: Path) -> None:
    """Bring what was written to a file to the disk."""
    fd = os.open(path, os.O_RDWR | _BINARY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable; systems that cannot open folders need no such thing."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
