"""What a command writes, looked at before any work: nothing that nobody named is replaced."""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from tqgguf.errors import OutputError


def check_targets(
    targets: Mapping[str, Iterable[Path]], *, inputs: Iterable[Path], force: bool
) -> None:
    """Refuse files that a command cannot or must not write. Raises OutputError.

    targets: what each option names. A target must be no input and no other option's target, and,
    after links, absent or a regular file, the latter only with force; its folder must exist.
    """
    read = [path for path in inputs if path.exists()]
    named: dict[Path, str] = {}
    for option, paths in targets.items():
        for path in paths:
            try:
                _check(path, option, read, force=force)
                place = Path(os.path.realpath(path))
            except OSError as error:
                raise OutputError(f"{path}: {(error.strerror or str(error)).lower()}") from None
            if named.setdefault(place, option) != option:
                raise OutputError(
                    f"{path}: {named[place]} and {option} name the same file; choose another"
                )


def check_sidecars(paths: Iterable[Path], *, inputs: Iterable[Path]) -> None:
    """Refuse to use names beside an output that are taken by something else. Raises OutputError."""
    read = [path for path in inputs if path.exists()]
    for path in paths:
        if not os.path.lexists(path):
            continue
        if path.is_symlink() or not path.is_file() or any(path.samefile(p) for p in read):
            raise OutputError(
                f"{path}: the unfinished output has that name, and something else is in its place; "
                "move it, or choose another --output"
            )


def _check(path: Path, option: str, read: Iterable[Path], *, force: bool) -> None:
    mode = _mode(path)
    if mode is not None:
        if any(path.samefile(p) for p in read):
            raise OutputError(f"{path}: the output is the input; choose another with {option}")
        if stat.S_ISDIR(mode):
            raise OutputError(f"{path}: is a folder; expected the name of a file")
        if not stat.S_ISREG(mode):
            raise OutputError(
                f"{path}: is {_kind(mode)}, no regular file; choose another with {option}"
            )
    if os.path.lexists(path) and not force:
        raise OutputError(f"{path}: exists already; overwrite it with --force")
    _check_folder(path)


def _check_folder(path: Path) -> None:
    folder = path.parent
    if not folder.exists():
        raise OutputError(f"{path}: the folder {folder} does not exist")
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is a file, not a directory")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: the folder {folder} cannot be written to")


def _mode(path: Path) -> int | None:
    """What a path leads to; None where nothing is there."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
