"""Run NumPy work on several threads: NumPy and BLAS release the interpreter's lock."""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

_PREFIXES = ("scipy_openblas", "openblas")  # NumPy's wheels, then a system's OpenBLAS
_SUFFIXES = ("64_", "")


def default_threads() -> int:
    """The number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(work: Callable[[Item], object], items: list[Item], *, threads: int | None) -> None:
    """Call work(item) for every item on `threads` threads (None: one per processor).

    Matrix products inside the workers run on one thread each, or they would fight for the cores.
    """
    keep_freed_memory()
    workers = min(threads or default_threads(), len(items))
    if workers <= 1:
        for item in items:
            work(item)
        return
    with single_threaded_blas(), ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, items):
            pass


def map_in_order(
    work: Callable[[Item], Result], items: Sequence[Item], *, threads: int | None
) -> Iterator[Result]:
    """Yield work(item) for every item in order, computed on `threads` threads."""
    with single_threaded_blas(), ThreadPoolExecutor(threads or default_threads()) as pool:
        yield from pool.map(work, items)


@cache
def keep_freed_memory() -> None:
    """Teach glibc's allocator, once, to keep what is freed instead of returning it to the system.

    Freeing a large untouched array raises its thresholds; otherwise the temporaries of every chunk
    are mapped and cleared anew, which halves the speed of some encoders. Elsewhere it does nothing.
    """
    np.empty(30 << 20, np.uint8)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep NumPy's OpenBLAS to one thread inside; another BLAS is left as it is."""
    functions = _openblas()
    if functions is None:
        yield
        return
    get, set_ = functions
    before = get()
    set_(1)
    try:
        yield
    finally:
        set_(before)


@cache
def _openblas() -> tuple[Any, Any] | None:
    """OpenBLAS' (get_num_threads, set_num_threads), looked up through NumPy's own module."""
    library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    for prefix in _PREFIXES:
        for suffix in _SUFFIXES:
            try:
                return (
                    getattr(library, f"{prefix}_get_num_threads{suffix}"),
                    getattr(library, f"{prefix}_set_num_threads{suffix}"),
                )
            except AttributeError:
                continue
    return None
