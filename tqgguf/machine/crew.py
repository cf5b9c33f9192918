"""Who works: threads, processes or a cluster, each worker with a queue of its own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqgguf.machine import board
from tqgguf.machine.board import Batch, Procedure
from tqgguf.machine.cluster import cluster
from tqgguf.machine.processes import processes

Result = TypeVar("Result")
Task = Callable[[], Result]


@dataclass(frozen=True)
class Crew:
    """Workers that do tasks; without any, whoever asks does them.

    check_sight refuses workers that do not see a path.
    """

    workers: Sequence[Executor] = ()
    check_sight: Callable[[Path], None] = lambda _: None

    def run(self, tasks: Sequence[Task[Result]], *, at_home: bool = False) -> list[Result]:
        """What tasks return, in order; see `Batch`. Raises what one of them raises."""

        def procedure() -> Procedure:
            yield (yield Batch(tasks, at_home))

        (results,) = self.together([procedure()])
        return list(results)

    def together(self, *groups: Sequence[Procedure]) -> Iterator[Any]:
        """Do what procedures ask for, the tasks of the first group's before those of the others."""
        return board.together(board.Shared(self.workers) if self.workers else board.Alone(), groups)


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
