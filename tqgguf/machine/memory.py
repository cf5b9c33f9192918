"""How much memory this process should use, and how bytes are told."""

import os
from contextlib import suppress
from pathlib import Path

GIB = 1 << 30
_MOST = 4 * GIB  # more does not make anything faster
_CGROUP = Path("/sys/fs/cgroup/memory.max")  # a container's own limit


def default_memory() -> int:
    """A quarter of the machine's (or the container's) memory in bytes, at most 4 GiB."""
    return min(_total_memory() // 4, _MOST)


def _total_memory() -> int:
    total = 4 * _MOST
    with suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(ValueError, OSError):
        total = min(total, int(_CGROUP.read_text()))
    return total


def readable_size(n_bytes: float) -> str:
    """Bytes for people, in powers of 1000 as llama.cpp's tools tell them."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
