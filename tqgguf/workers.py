"""Who works: processes of this machine or of a dask.distributed cluster; and results in order."""

import logging
import multiprocessing
import os
import re
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np

from tqgguf import __version__
from tqgguf.errors import PlanError, ToolError

Key = TypeVar("Key")
Result = TypeVar("Result")
Task = Callable[[], Result]

_LOCAL = re.compile(r"local:([1-9]\d{0,3})")


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """`count` processes of this machine, which never wait for each other's interpreter.

    They leave Ctrl-C to this process and end with it, however it ends. The main module must be one
    that can be imported (`if __name__ == "__main__"`). Raises ToolError where one of them dies.
    """
    fork_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if fork_server else "spawn")
    context.set_forkserver_preload(["__main__", "tqgguf.pipeline"])  # imported once, not by each
    try:
        with ProcessPoolExecutor(count, mp_context=context, initializer=_begin_worker) as pool:
            yield pool
    except BrokenProcessPool:
        raise ToolError(
            "a worker process died, perhaps for lack of memory; go on with --resume and a smaller "
            "--max-memory or --threads 1"
        ) from None


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent process, end when it ends; it checks what overflows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore", RuntimeWarning)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(frozen=True)
class Workers:
    """A cluster's executor, how many tasks it runs at once, and its client."""

    pool: Executor
    count: int
    client: Any

    def check_sight(self, path: Path) -> None:
        """Refuse a cluster whose workers do not see a file: ToolError."""
        for worker, sees in self.client.run(_sees, str(path)).items():
            if not sees:
                raise ToolError(
                    f"--cluster: worker {worker} does not see {path}; model and output must "
                    "lie on storage that all workers share under the same name"
                )


@contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """The workers of a dask.distributed cluster: a scheduler's address, or local:N processes.

    The scheduler gives the tasks of a worker that is lost to another one. Raises ToolError where
    there is no scheduler, no worker or no agreement on versions, and when the cluster goes away:
    after as long as dask's `distributed.comm.timeouts.connect` says.
    """
    try:
        import dask
        import distributed
        from distributed.client import ClosedClientError
        from distributed.comm.core import CommClosedError
    except ImportError:
        raise ToolError("--cluster needs dask.distributed: pip install 'tqgguf[cluster]'") from None
    patience = dask.config.get("distributed.comm.timeouts.connect")
    with ExitStack() as stack:
        client = _client(distributed, address, patience, stack)
        try:
            yield Workers(_ClusterPool(client), _size(client, address), client)
        except (ClosedClientError, CommClosedError, CancelledError) as error:
            raise ToolError(f"--cluster {address}: lost the connection to it") from error
        except (distributed.KilledWorker, TimeoutError) as error:
            raise ToolError(f"--cluster {address}: {error}") from error


class _ClusterPool(Executor):
    """Tasks on a cluster, as futures that end whatever becomes of the cluster.

    Those of dask's own executor stay pending for ever where the scheduler is lost while a result is
    on its way.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, task: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run a task on a worker; what it returns or raises comes back."""
        import asyncio  # slow to load, and distributed has done so

        outcome = _outcome(self._client.submit(task, *args, pure=False, **kwargs))
        return asyncio.run_coroutine_threadsafe(outcome, self._client.loop.asyncio_loop)


async def _outcome(task: Any) -> Any:
    return await task


def _client(distributed: Any, address: str, patience: str, stack: ExitStack) -> Any:
    """Start or reach the cluster; it is left when the stack is unwound."""
    local = _LOCAL.fullmatch(address)
    if local is None and not re.match(r"\w+://.", address):
        raise PlanError(f"--cluster {address!r} is neither tcp://HOST:PORT nor local:N")
    try:
        if local is not None:
            target: Any = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=int(local[1]),
                    threads_per_worker=1,
                    dashboard_address=None,
                    silence_logs=logging.ERROR,
                )
            )
        else:
            target = address
        client = stack.enter_context(distributed.Client(target, timeout=patience))
        client.wait_for_workers(1, timeout=patience)
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise ToolError(f"--cluster {address}: no scheduler with workers: {error}") from None
    return client


def _size(client: Any, address: str) -> int:
    """The number of tasks that run at once, all of them by this very version."""
    try:
        versions = client.run(_versions)
    except ImportError as error:
        raise ToolError(f"--cluster {address}: a worker lacks tqgguf: {error}") from None
    for worker, version in versions.items():
        if version != _versions():
            raise ToolError(
                f"--cluster {address}: worker {worker} has {version}, but here it is {_versions()}"
            )
    return max(1, sum(map(int, client.nthreads().values())))


def _versions() -> str:
    return f"tqgguf {__version__} with NumPy {np.__version__}"


def _sees(path: str) -> bool:
    return Path(path).exists()


def here() -> str:
    """The address of the cluster's worker that this runs on, "" outside of a cluster."""
    try:
        from distributed import get_worker

        return str(get_worker().address)
    except (ImportError, ValueError):
        return ""


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
