"""Where work runs, and how its results come back in the order they were asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")
Task = Callable[[], Result]


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
