"""Run work in forked children.

NumPy's calls on arrays that fit a cache last some ten microseconds, and handing the interpreter's
lock from thread to thread costs as much: two threads of an encoder were slower than one, two
processes 1.8 times as fast (docs/LOG.md). A forked child sees all of its parent's memory, so
nothing is copied or pickled on the way in; what it computes goes back through a pipe, or through
shared memory. Only Linux: elsewhere forking is absent or unsafe, and threads do the work.
"""

import ctypes
import gc
import mmap
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from tqgguf.errors import OutputError
from tqgguf.kernels.threads import default_threads, run_all, single_threaded_blas

Item = TypeVar("Item")
Result = TypeVar("Result")
Scalar = TypeVar("Scalar", bound=np.generic)

_WORTH_A_FORK = 4  # items per worker: a fork costs some milliseconds, as much as one or two
_PR_SET_PDEATHSIG = 1
_forking = threading.Lock()  # a child that inherits a pipe of another would keep it open
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
    with single_threaded_blas(), ThreadPoolExecutor(workers - 1) as pool:
        shares = [partial(_work_off, work, items[i::workers]) for i in range(workers)]
        others = [pool.submit(in_child, share) for share in shares[1:]]
        shares[0]()
        for other in others:
            other.result()


def in_child(work: Callable[[], Result]) -> Result:
    """Run work in a forked child and return what it returns, or raise what it raises.

    Raises OutputError if the child is killed, as the system does when memory runs out.
    """
    with _forking:
        read_end, write_end = os.pipe()
        child = _fork()
        if child == 0:
            os.close(read_end)
            _serve(work, write_end)
        os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        reply = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise OutputError(
            f"a worker process died ({_cause(status)}), perhaps for want of memory; "
            "use fewer --threads or a smaller --max-memory"
        )
    succeeded, result = pickle.loads(reply)
    if not succeeded:
        raise result
    value: Result = result
    return value


def _work_off(work: Callable[[Item], object], items: Sequence[Item]) -> None:
    for item in items:
        work(item)


def _fork() -> int:
    """Fork without Python 3.12's warning about threads: the child only computes and writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _serve(work: Callable[[], object], write_end: int) -> NoReturn:
    """The child's life: work, reply, leave without any of the parent's clean-up."""
    global _in_child
    status = 1
    try:
        _in_child = True
        gc.disable()  # the parent's garbage is the parent's to finalize
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            reply = pickle.dumps((True, work()))
        except BaseException as error:  # noqa: BLE001  whatever it is, the parent raises it
            reply = pickle.dumps((False, error))
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(reply)
        status = 0
    finally:
        os._exit(status)


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"status {os.waitstatus_to_exitcode(status)}"
