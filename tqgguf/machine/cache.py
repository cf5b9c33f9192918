"""Where the user's cache is, and how its folders are kept from growing."""

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def user_cache() -> Path:
    """The user's cache directory for tqgguf: $XDG_CACHE_HOME or ~/.cache, then tqgguf."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tqgguf"


def prune(folder: Path, *, limit: int, keep: str, reserved: int = 0) -> None:
    """Delete a folder's least recently used entries until the rest take at most `limit` bytes.

    An entry is everything whose name is the same up to the first dot: files, or one folder.
    keep: the entry that stays, which may come to take `reserved` bytes.
    """
    entries: dict[str, list[Path]] = defaultdict(list)
    with suppress(FileNotFoundError):  # another process prunes too
        for path in folder.iterdir():
            entries[path.name.partition(".")[0]].append(path)
    total = max(reserved, sum(map(size_on_disk, entries.pop(keep, []))))
    for paths in sorted(entries.values(), key=_last_used, reverse=True):
        total += sum(map(size_on_disk, paths))
        if total > limit:
            _delete(paths)


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of a folder's files; another process may be deleting them."""
    total = 0
    with suppress(OSError):
        if path.is_dir():
            with os.scandir(path) as entries:
                total = sum(entry.stat().st_size for entry in entries)
        else:
            total = path.stat().st_size
    return total


def _last_used(paths: Sequence[Path]) -> float:
    times = [0.0]
    with suppress(OSError):
        times += [path.stat().st_mtime for path in paths]
    return max(times)


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
