"""Run work in forked children.

NumPy's calls on arrays that fit a cache last some ten microseconds, and handing the interpreter's
lock from thread to thread costs as much: two threads of an encoder were slower than one, two
processes 1.8 times as fast (docs/LOG.md). A forked child sees all of its parent's memory, so
nothing is copied on the way in; what it computes goes back through a pipe, shared memory or a file.
Only Linux: elsewhere forking is absent or unsafe, and threads do the work.
"""

import ctypes
import gc
import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import prod
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tqgguf.errors import OutputError
from tqgguf.kernels.threads import default_threads, run_all, single_threaded_blas

Item = TypeVar("Item")
Scalar = TypeVar("Scalar", bound=np.generic)

_WORTH_A_FORK = 4  # items per worker: a fork costs some milliseconds, as much as one or two
_PR_SET_PDEATHSIG = 1
_in_child = False


def can_fork() -> bool:
    """Whether this process may fork: on Linux, unless it is itself a child."""
    return sys.platform == "linux" and not _in_child


def shared_empty(shape: tuple[int, ...], dtype: np.dtype[Scalar]) -> NDArray[Scalar]:
    """An array in memory shared with children that are forked later."""
    size = prod(shape) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


def fill_shared(
    work: Callable[[Item], object], items: Sequence[Item], *, threads: int | None
) -> None:
    """Call work(item) for every item, on several processes where that pays.

    What work leaves behind must lie in shared memory or files. Each worker takes every n-th item.
    """
    workers = min(threads or default_threads(), len(items) // _WORTH_A_FORK)
    if workers < 2 or not can_fork():
        run_all(work, list(items), threads=1 if can_fork() else threads)
        return

    def work_off(first: int) -> None:
        for item in items[first::workers]:
            work(item)

    with (
        single_threaded_blas(),
        Crew(work_off, workers - 1) as crew,
        ThreadPoolExecutor(workers - 1) as pool,
    ):
        others = [pool.submit(crew, i) for i in range(1, workers)]
        work_off(0)
        for other in others:
            other.result()


class Crew:
    """Forked children that answer calls of one function, each one call at a time.

    Calling the crew waits for an idle child and returns what the function returns there, or raises
    what it raises; any number of threads may call. Arguments and results are pickled. A child is
    the parent at the time of the fork, and dies with it. Use as a context manager.
    """

    def __init__(self, function: Callable[..., Any], count: int) -> None:
        self._children = [_Child(function) for _ in range(count)]
        self._idle: SimpleQueue[_Child] = SimpleQueue()
        for child in self._children:
            self._idle.put(child)

    def __call__(self, *arguments: object) -> Any:
        """Call the function in an idle child; OutputError if the child is killed meanwhile."""
        child = self._idle.get()
        try:
            return child.call(arguments)
        finally:
            self._idle.put(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.dismiss()


class _Child:
    """One forked process and the connection to it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._connection, end = Pipe()
        self._id = _fork()
        if self._id == 0:
            _serve(function, end)
        end.close()

    def call(self, arguments: tuple[object, ...]) -> Any:
        """Send the arguments, wait for the result."""
        try:
            self._connection.send(arguments)
            succeeded, result = self._connection.recv()
        except (EOFError, OSError):
            raise OutputError(
                "a worker process died, perhaps for want of memory; "
                "use fewer --threads or a smaller --max-memory"
            ) from None
        if not succeeded:
            raise result
        return result

    def dismiss(self) -> None:
        """Let the child leave and wait until it has."""
        with suppress(OSError):
            self._connection.send(None)
        self._connection.close()
        os.waitpid(self._id, 0)


def _fork() -> int:
    """Fork without Python 3.12's warning about threads: the child only computes and writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _serve(function: Callable[..., object], connection: "Connection[Any, Any]") -> NoReturn:
    """The child's life: answer calls, then leave without any of the parent's clean-up."""
    global _in_child
    try:
        _in_child = True
        gc.freeze()  # the parent's garbage is the parent's to finalize
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        while (arguments := connection.recv()) is not None:
            try:
                reply = (True, function(*arguments))
            except BaseException as error:  # noqa: BLE001  whatever it is, the parent raises it
                reply = (False, error)
            connection.send(reply)
    finally:
        os._exit(0)
