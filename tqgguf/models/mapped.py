"""Files mapped into memory, and pages that are given back once they are read.

A pass over a model would otherwise hold all of it. The pages stay in the system's cache: reading
them again is cheap.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from tqgguf.errors import FileFormatError
from tqgguf.kernels.dtypes import U8


def map_file(path: Path) -> U8:
    """The file's bytes, mapped; an empty file maps to no bytes. FileFormatError if unreadable."""
    try:
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise FileFormatError(f"{path}: {(error.strerror or str(error)).lower()}") from error


def give_back(part: NDArray[Any]) -> None:
    """Give back the whole pages that a view of a mapped file spans; a copy spans none."""
    if part.nbytes < mmap.PAGESIZE:
        return
    whole: NDArray[Any] = part
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    pages: Any = whole.base
    if not isinstance(pages, mmap.mmap) or not hasattr(pages, "madvise"):
        return
    base, _ = byte_bounds(whole)
    begin, end = (address - base for address in byte_bounds(part))
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        pages.madvise(mmap.MADV_DONTNEED, first, last - first)
