"""Processes of this machine: they never wait for each other's interpreter, and end with ours."""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from threading import Thread

from tqgguf.machine.signals import STOPPING, held_back
from tqgguf.machine.workers import Workers

_methods = multiprocessing.get_all_start_methods()  # to start processes, that work here


@contextmanager
def processes(count: int, *, preload: str) -> Iterator[Workers]:
    """`count` processes of this machine, which never wait for each other's interpreter.

    preload: the module that holds their work, imported once and not by each. They leave Ctrl-C and
    the like to this process and end with it, however it ends. The main module must be one that can
    be imported (`if __name__ == "__main__"`). Where one of them dies, its tasks raise ToolError.
    """
    expect_processes(preload=preload)
    with Workers(count, _context(preload), _begin_worker) as workers:
        yield workers


def expect_processes(*, preload: str) -> None:
    """Let what processes are forked from import the module while this process goes on.

    Matrix products run on one thread there. OpenBLAS would start one per core in each process, and
    those wait busily: half a second on 16 cores. Ctrl-C is left to this process from the beginning.
    """
    if _context(preload).get_start_method() == "forkserver":
        from multiprocessing import forkserver  # not everywhere

        try:
            with _in_environment(OPENBLAS_NUM_THREADS="1"), held_back():
                forkserver.ensure_running()
        except OSError:  # the name of a folder for temporary files is too long for its socket
            _methods.remove("forkserver")


@contextmanager
def _in_environment(**variables: str) -> Iterator[None]:
    """Let programs that are started inside see these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _context(preload: str) -> BaseContext:
    method = "forkserver" if "forkserver" in _methods else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["__main__", preload])
    return context


def _begin_worker() -> None:
    """Leave Ctrl-C and the like to the parent, end when it ends; it checks what overflows."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore", RuntimeWarning)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
