"""Who works: threads, processes or a cluster, each worker with a queue of its own."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from tqgguf.machine.cluster import cluster
from tqgguf.machine.processes import processes
from tqgguf.machine.threads import keep_freed_memory, single_threaded_blas

Result = TypeVar("Result")
Task = Callable[[], Result]

_AHEAD = 2  # tasks that a worker is given, so that it does not wait for the next


@dataclass(frozen=True)
class Crew:
    """Workers that do tasks; without any, whoever asks does them.

    check_sight refuses workers that do not see a path.
    """

    workers: Sequence[Executor] = ()
    check_sight: Callable[[Path], None] = lambda _: None

    def run(self, tasks: Sequence[Task[Result]]) -> Iterator[Result]:
        """Yield what tasks return, in order; whoever is idle takes the next one."""
        if not self.workers:
            yield from map(_alone, tasks)
            return
        queue = _Queue(tasks, few=len(self.workers))
        for worker in [*self.workers] * _AHEAD:
            queue.feed(worker)
        try:
            for outcome in queue.outcomes:
                yield outcome.result()
        finally:
            queue.close()

    def run_at_home(self, tasks: Sequence[Task[Result]]) -> Iterator[Result]:
        """The same, but task i of every call goes to the same worker, which may remember it."""
        size = max(1, len(self.workers))
        if size == 1:
            yield from self.run(tasks)
            return
        queues = [_Queue(tasks[i::size]) for i in range(size)]
        for queue, worker in zip(queues * _AHEAD, list(self.workers) * _AHEAD, strict=True):
            queue.feed(worker)
        try:
            for i in range(len(tasks)):
                yield queues[i % size].outcomes[i // size].result()
        finally:
            for queue in queues:
                queue.close()


class _Queue(Generic[Result]):
    """Tasks that wait for a worker, and what becomes of all of them.

    few: so many are given to whoever is idle; while there are more, a worker has the next one with
    it when it is done with one.
    """

    def __init__(self, tasks: Sequence[Task[Result]], *, few: int = 0) -> None:
        self._few, self._busy = few, Counter[Executor]()
        self.outcomes: list[Future[Result]] = [Future() for _ in tasks]
        self._waiting = deque(zip(self.outcomes, tasks, strict=True))
        self._lock = Lock()

    def feed(self, worker: Executor) -> None:
        """Give a worker the next task if it may have it, and another one when it is done."""
        with self._lock:
            most = _AHEAD if len(self._waiting) > self._few else 1
            if not self._waiting or self._busy[worker] >= most:
                return
            outcome, task = self._waiting.popleft()
            self._busy[worker] += 1
        done = worker.submit(_alone, task)
        done.add_done_callback(partial(self._pass_on, outcome, worker))

    def _pass_on(self, outcome: Future[Result], worker: Executor, done: Future[Result]) -> None:
        error = CancelledError() if done.cancelled() else done.exception()
        with self._lock:
            self._busy[worker] -= 1
        if error is None:
            self.feed(worker)
            outcome.set_result(done.result())
        else:
            self.close()
            outcome.set_exception(error)

    def close(self) -> None:
        """Let nothing that has not begun begin."""
        with self._lock:
            for outcome, _ in self._waiting:
                outcome.cancel()
            self._waiting.clear()


def _alone(task: Task[Result]) -> Result:
    """Matrix products of a worker run on one thread, or workers would fight for the cores."""
    keep_freed_memory()
    with single_threaded_blas():
        return task()


@contextmanager
def threads(count: int) -> Iterator[Crew]:
    """`count` threads of this process; a single one is the caller."""
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(count)]
        yield Crew(pools if count > 1 else ())


@contextmanager
def separate_processes(count: int, *, preload: str) -> Iterator[Crew]:
    """`count` processes of this machine; see `machine.processes`."""
    with processes(count, preload=preload) as found:
        yield Crew(found.each)


@contextmanager
def cluster_workers(address: str) -> Iterator[Crew]:
    """The workers of a dask.distributed cluster; see `machine.cluster`."""
    with cluster(address) as found:
        yield Crew(found.each(), found.check_sight)
