"""Folders of a process's own: what is left of one that was killed is removed by the next run."""

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import rmtree

from tqgguf.machine.locks import lock
from tqgguf.machine.threads import run_all

_OWNER = "owner"  # the file that is locked as long as a folder is somebody's
_GONE = "-gone"  # at the end of the name of one that is being removed
_REMOVING = 4  # files at once: the system takes a quarter of a millisecond for each
_MANY = 64  # files; fewer take no threads, which an interpreter that is ending does not start


@contextmanager
def own_folder(root: Path | None = None) -> Iterator[Path]:
    """A folder below `root` (None: the one for temporary files) until the block ends.

    Those that processes of this host have left there are removed. Raises OSError where there can
    be none.
    """
    root = root or Path(tempfile.gettempdir())
    with ExitStack() as stack:
        _tidy(root)
        folder = Path(tempfile.mkdtemp(prefix=f"{_ours()}.", dir=root))
        stack.callback(_remove, folder)
        _own(folder, stack)
        yield folder


def _ours() -> str:
    """What the names of this host's folders begin with."""
    return f"tqgguf-{platform.node()}"


def _own(folder: Path, stack: ExitStack) -> None:
    """Lock a folder as long as this process has it open, which whoever tidies up respects."""
    owner = stack.enter_context((folder / _OWNER).open("wb", buffering=0))
    lock(owner, wait=True)
    owner.write(b"%d\n" % os.getpid())  # from now on it is somebody's


def _remove(folder: Path) -> None:
    """Under another name first: after Ctrl-C some still work, and would put more there."""
    with suppress(OSError):  # Windows: where a file is open
        folder = folder.rename(folder.with_name(f"{folder.name}{_GONE}"))
    files = list(folder.glob("*"))
    run_all(_unlink, files, threads=_REMOVING if len(files) >= _MANY else 1)
    rmtree(folder, ignore_errors=True)


def _unlink(path: Path) -> None:
    with suppress(OSError):  # what is left is removed by the next run
        path.unlink()


def _tidy(root: Path) -> None:
    """Remove what is left of this host; not every file system tells of another one's locks."""
    for folder in root.iterdir():
        if folder.name.rpartition(".")[0] == _ours() and _is_left(folder):
            rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether a folder was somebody's, and is nobody's any more."""
    if folder.name.endswith(_GONE):
        return True
    path = folder / _OWNER
    with suppress(OSError):
        if path.is_file():  # not a pipe, which a stranger's folder may hold
            with path.open("r+b") as owner:
                return lock(owner) and owner.read() != b""
    return False
