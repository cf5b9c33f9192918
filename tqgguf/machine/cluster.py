"""The workers of a dask.distributed cluster."""

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tqgguf.errors import PlanError, ToolError
from tqgguf.machine.signals import held_back
from tqgguf.version import __version__

Result = TypeVar("Result")

_LOGS = "distributed", "distributed.client"  # of a lost cluster: an error says it in a line
_LOCAL = re.compile(r"local:([1-9]\d{0,3})")


@dataclass(frozen=True)
class Workers:
    """A cluster's executor, how many tasks it runs at once, and its client."""

    pool: Executor
    count: int
    client: Any

    def each(self) -> list[Executor]:
        """An executor for every thread of every worker; others take over what one loses."""
        found = self.client.nthreads().items()
        return [_ClusterPool(self.client, [name]) for name, count in found for _ in range(count)]

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
    for name in _LOGS:  # for good: a client says more when it has been left
        logging.getLogger(name).setLevel(logging.CRITICAL)
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

    def __init__(self, client: Any, workers: list[str] | None = None) -> None:
        self._client = client
        self._where = {"workers": workers, "allow_other_workers": True} if workers else {}

    def submit(self, task: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run a task on a worker; what it returns or raises comes back."""
        import asyncio  # slow to load, and distributed has done so

        outcome = _outcome(self._client.submit(task, *args, pure=False, **self._where, **kwargs))
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
            target: Any = stack.enter_context(_local(distributed, int(local[1])))
        else:
            _require_answer(distributed, address, patience)
            target = address
        client = stack.enter_context(distributed.Client(target, timeout=patience))
        client.wait_for_workers(1, timeout=patience)
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise ToolError(f"--cluster {address}: no scheduler with workers: {error}") from None
    return client


def _require_answer(distributed: Any, address: str, patience: str) -> None:
    """Shake hands: dask waits for ever for a scheduler that takes a connection and says nothing.

    Raises OSError.
    """
    import asyncio  # slow to load, and distributed has done so

    from dask.utils import parse_timedelta

    async def shake_hands() -> None:
        options = distributed.Security().get_connection_args("client")
        reached = distributed.comm.connect(address, **options)  # in as long as patience lasts
        comm = await asyncio.wait_for(reached, 2 * parse_timedelta(patience))
        await comm.close()

    try:
        distributed.utils.LoopRunner().run_sync(shake_hands)
    except TimeoutError:
        raise OSError(f"it takes connections, and says nothing for {patience}") from None


def _local(distributed: Any, count: int) -> Any:
    """A cluster of processes here, which leave Ctrl-C and the like to this one."""
    with held_back():
        return distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # None would take port 8787
            silence_logs=logging.CRITICAL,  # what goes wrong is raised here
        )


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
