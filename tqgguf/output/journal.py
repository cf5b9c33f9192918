"""The journal of an unfinished output: which tensors are on the disk, and of which run they are.

Lines of JSON: the first describes the run, each of the others a finished tensor with its checksum.
A line that a crash cut off counts as not written.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

from tqgguf.errors import OutputError
from tqgguf.machine.locks import lock

VERSION = 1
Record = dict[str, Any]


def journal_path(partial: Path) -> Path:
    """Where the journal of an unfinished file lives."""
    return partial.with_name(partial.name + ".journal")


class Journal:
    """An open journal, locked against another run into the same output.

    run: what identifies the run, a text for each aspect; records: the finished tensors by name.
    """

    def __init__(self, file: FileIO, path: Path) -> None:
        self._file, self.path = file, path
        self.run, self.records, self._end = _parse(file.readall())

    def begin(self, run: Mapping[str, str]) -> None:
        """Forget whatever is in the journal and describe a new run."""
        self.run, self.records, self._end = dict(run), {}, 0
        self.append([{"journal": VERSION, "run": self.run}])

    def append(self, lines: list[Record]) -> None:
        """Add lines, in place of one that was cut off, and wait until they are on the disk."""
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self._file.truncate(self._end)
        self._file.seek(self._end)
        if self._file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._file.fileno())
        self._end += len(data)

    def check(self, run: Mapping[str, str]) -> None:
        """Refuse to continue another run: OutputError with the first difference."""
        cure = "start over with --force instead of --resume"
        for key in dict.fromkeys([*run, *(self.run or {})]):
            was, now = (self.run or {}).get(key, "unknown"), run.get(key, "unknown")
            if was != now:
                raise OutputError(
                    f"{self.path}: cannot resume: {key} was {was} and is {now} now; {cure}"
                )

    def delete(self) -> None:
        """Remove the journal; its lock is held until the file is closed."""
        self.path.unlink(missing_ok=True)


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open or create a journal; OutputError if another process has it open."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with FileIO(fd, "r+b") as file:
        _lock(file, path)
        journal = Journal(file, path)
        yield journal
        if journal.run is None:
            journal.delete()


def _lock(file: FileIO, path: Path) -> None:
    try:
        lock(file)  # where there are no locks, two runs into one output are not told apart
    except BlockingIOError:
        output = path.name.removesuffix(".partial.journal")
        raise OutputError(f"{path.with_name(output)}: another tqgguf is writing it") from None


def _parse(data: bytes) -> tuple[dict[str, str] | None, dict[str, Record], int]:
    """The run (None if nothing readable was written), the finished tensors, the bytes they take."""
    lines: list[Record] = []
    end = 0
    with suppress(ValueError):
        for line in BytesIO(data):
            if not line.endswith(b"\n"):
                break
            lines.append(json.loads(line))
            end += len(line)
    if not lines or not _is_header(lines[0]):
        return None, {}, 0
    return lines[0]["run"], {line["tensor"]: line for line in lines[1:] if _is_record(line)}, end


def _is_header(line: Any) -> bool:
    is_ours = isinstance(line, dict) and line.get("journal") == VERSION
    return is_ours and isinstance(line.get("run"), dict)


def _is_record(line: Any) -> bool:
    return isinstance(line, dict) and line.keys() >= {"tensor", "checksum", "note"}
