"""Small files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write: what is there when all went well replaces `path`, anything else is removed.

    The name is this process's own, so that two that write the same file do not meet.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield scratch
        scratch.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # of a full disk the system names no file
        raise
    finally:
        scratch.unlink(missing_ok=True)
