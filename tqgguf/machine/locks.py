"""Files that one process at a time has locked; the system lets go of them when it has ended."""

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Lock a file that is open for writing until it is closed; False where there are no locks.

    wait: until nobody else has it. Raises BlockingIOError where somebody else has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # a file system without
        return False
    return True
