"""Run NumPy work on threads (NumPy and BLAS release the interpreter's lock), results in order."""

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")
Key = TypeVar("Key")
Result = TypeVar("Result")
Task = Callable[[], Result]

_PREFIXES = ("scipy_openblas", "openblas")  # NumPy's wheels, then a system's OpenBLAS
_SUFFIXES = ("64_", "")
_FEW = 4  # 16 took twice the time of these, and six times the processor's (docs/LOG.md)


def default_threads() -> int:
    """The number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def few(threads: int | None) -> int:
    """How many threads are worth it for small arrays, whose work holds the interpreter's lock."""
    return min(threads or default_threads(), _FEW)


def run_all(work: Callable[[Item], object], items: list[Item], *, threads: int | None) -> None:
    """Call work(item) for every item on `threads` threads (None: one per processor).

    Matrix products inside the workers run on one thread each: several would fight for the cores,
    and give other bits, so that the number of workers would show in the results.
    """
    keep_freed_memory()
    workers = min(threads or default_threads(), len(items))
    with single_threaded_blas():
        if workers <= 1:
            for item in items:
                work(item)
            return
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(work, items):
                pass


def map_in_order(
    work: Callable[[Item], Result], items: Sequence[Item], *, threads: int | None
) -> Iterator[Result]:
    """Yield work(item) for every item in order, computed on `threads` threads."""
    keep_freed_memory()
    with single_threaded_blas(), ThreadPoolExecutor(threads or default_threads()) as pool:
        yield from pool.map(work, items)


def in_order(
    groups: Iterable[tuple[Key, Sequence[Task[Result]]]],
    pool: Executor,
    *,
    ahead: int,
    on_result: Callable[[Result], object],
) -> Iterator[tuple[Key, list[Result]]]:
    """Run the tasks of all groups and yield each group with its results, in order.

    About `ahead` tasks are kept waiting, so that no worker is idle and nothing is begun far before
    its turn. on_result sees each result before its group is complete. After an exception, tasks
    that have not begun never do.
    """
    waiting: deque[tuple[Key, list[Future[Result]]]] = deque()
    try:
        for key, tasks in groups:
            waiting.append((key, [pool.submit(task) for task in tasks]))
            while sum(len(futures) for _, futures in waiting) > ahead:
                yield _complete(waiting, on_result)
        while waiting:
            yield _complete(waiting, on_result)
    except BaseException:
        for _, futures in waiting:
            for future in futures:
                future.cancel()
        raise


def _complete(
    waiting: deque[tuple[Key, list[Future[Result]]]], on_result: Callable[[Result], object]
) -> tuple[Key, list[Result]]:
    """Wait for the oldest group."""
    key, futures = waiting[0]
    results = []
    for future in futures:
        results.append(future.result())
        on_result(results[-1])
    waiting.popleft()
    return key, results


@cache
def keep_freed_memory() -> None:
    """Teach glibc's allocator, once, to keep what is freed instead of returning it to the system.

    Freeing a large untouched array raises its thresholds; otherwise the temporaries of every chunk
    are mapped and cleared anew, which halves the speed of some encoders. Elsewhere it does nothing.
    """
    np.empty(30 << 20, np.uint8)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep NumPy's OpenBLAS to one thread inside; another BLAS is left as it is.

    The number is the whole process's: of several threads that are inside, the last one restores it.
    """
    functions = _openblas()
    if functions is None:
        yield
        return
    get, set_ = functions
    _limit.enter(get, set_)
    try:
        yield
    finally:
        _limit.leave(set_)


class _Limit:
    """How many are inside, and the number of threads before the first of them was."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, 1

    def enter(self, get: Callable[[], int], set_: Callable[[int], object]) -> None:
        with self._lock:
            if not self._inside:
                self._before = get()
            self._inside += 1
            set_(1)

    def leave(self, set_: Callable[[int], object]) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                set_(self._before)


_limit = _Limit()


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
