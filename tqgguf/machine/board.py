"""Tasks of several procedures at once, dealt out to workers: the most urgent first."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock
from typing import Any, Protocol

from tqgguf.machine.threads import keep_freed_memory, single_threaded_blas

Task = Callable[[], Any]

_AHEAD = 2  # tasks that a worker is given, so that it does not wait for the next


@dataclass(frozen=True)
class Batch:
    """Tasks whose results, in order, a procedure waits for.

    at_home: task i of every such batch goes to the same worker, which may remember it.
    """

    tasks: Sequence[Task]
    at_home: bool = False


@dataclass(frozen=True)
class Until:
    """What a procedure waits for that others bring about."""

    holds: Callable[[], bool]


# What is yielded is waited for, and else passed on to whoever asked for the procedures.
Procedure = Generator[Any, Any, None]


class _Outcome:
    """What becomes of a batch."""

    def __init__(self, size: int) -> None:
        self._results: list[Any] = [None] * size
        self._left, self._lock = size, Lock()
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether all of it is, or will never be."""
        return self._left <= 0

    def set(self, number: int, result: Any) -> bool:
        """Note a task's result; was it the last one?"""
        self._results[number] = result
        with self._lock:
            self._left -= 1
            return self._left == 0

    def fail(self, error: BaseException) -> None:
        """Note that a task failed."""
        with self._lock:
            self._error, self._left = error, 0

    def result(self) -> list[Any]:
        """What the tasks returned; raises what one of them raised."""
        if self._error is not None:
            raise self._error
        return self._results


class _Board(Protocol):
    """Where batches are posted; urgency: 0 the highest."""

    def post(self, urgency: int, batch: Batch) -> _Outcome:
        """Have tasks done."""

    def listen(self, future: "Future[Any]") -> None:
        """Wake up when it is done."""

    def wait(self) -> None:
        """Return when something has happened."""

    def close(self) -> None:
        """Let nothing that has not begun begin."""


class Alone:
    """Whoever waits does the tasks, a most urgent one at a time."""

    def __init__(self) -> None:
        self._tasks: dict[int, deque[tuple[_Outcome, int, Task]]] = {}
        self._futures: set[Future[Any]] = set()

    def post(self, urgency: int, batch: Batch) -> _Outcome:
        """Have tasks done."""
        outcome = _Outcome(len(batch.tasks))
        waiting = self._tasks.setdefault(urgency, deque())
        waiting.extend((outcome, i, task) for i, task in enumerate(batch.tasks))
        return outcome

    def listen(self, future: "Future[Any]") -> None:
        """Wake up when it is done."""
        self._futures.add(future)

    def wait(self) -> None:
        """Do a task, or wait for a future if there is none."""
        for _, waiting in sorted(self._tasks.items()):
            if waiting:
                outcome, number, task = waiting.popleft()
                outcome.set(number, alone(task))
                return
        self._futures = wait(self._futures, return_when=FIRST_COMPLETED).not_done

    def close(self) -> None:
        """Let nothing that has not begun begin."""
        self._tasks.clear()


class Shared:
    """Workers, each of whom takes the next one of the most urgent tasks when it is idle."""

    def __init__(self, workers: Sequence[Executor]) -> None:
        self._workers, self._busy = workers, [0] * len(workers)
        self._tasks: dict[tuple[int, int | None], deque[tuple[_Outcome, int, Task]]] = {}
        self._lock, self._news = Lock(), SimpleQueue[None]()
        self._is_closed = False

    def post(self, urgency: int, batch: Batch) -> _Outcome:
        """Have tasks done."""
        outcome = _Outcome(len(batch.tasks))
        with self._lock:
            for i, task in enumerate(batch.tasks):
                home = i % len(self._workers) if batch.at_home else None
                self._tasks.setdefault((urgency, home), deque()).append((outcome, i, task))
        order = sorted(range(len(self._workers)), key=self._busy.__getitem__)
        for worker in order * _AHEAD:
            if not self._feed(worker) and not batch.at_home:
                break
        return outcome

    def listen(self, future: "Future[Any]") -> None:
        """Wake up when it is done."""
        future.add_done_callback(lambda _: self._news.put(None))

    def wait(self) -> None:
        """Return when a batch or a future is done."""
        self._news.get()

    def close(self) -> None:
        """Let nothing that has not begun begin."""
        with self._lock:
            self._is_closed = True
            self._tasks.clear()

    def _feed(self, worker: int) -> bool:
        """Give a worker the next task if it may have it, and another one when it is done."""
        with self._lock:
            waiting = None if self._is_closed else self._next(worker)
            if waiting is None:
                return False
            outcome, number, task = waiting.popleft()
            self._busy[worker] += 1
        try:
            done = self._workers[worker].submit(alone, task)
        except Exception as error:  # noqa: BLE001 - who waits for the task would do so for ever
            self._fail(outcome, error)
        else:
            done.add_done_callback(partial(self._ended, worker, outcome, number))
        return True

    def _next(self, worker: int) -> deque[tuple[_Outcome, int, Task]] | None:
        """The tasks of which this worker should do the first one next, if it may have any.

        It has one in advance where nobody else may do that, and of the most urgent ones while there
        are enough for all.
        """
        for urgency in sorted({urgency for urgency, _ in self._tasks}):
            own, shared = (self._tasks.get((urgency, home)) for home in (worker, None))
            if own:
                return own if self._busy[worker] < _AHEAD else None
            if shared:
                many = urgency == 0 and len(shared) > len(self._workers)
                return shared if self._busy[worker] < (_AHEAD if many else 1) else None
        return None

    def _ended(self, worker: int, outcome: _Outcome, number: int, done: "Future[Any]") -> None:
        error = CancelledError() if done.cancelled() else done.exception()
        with self._lock:
            self._busy[worker] -= 1
        if error is None:
            self._feed(worker)
            if outcome.set(number, done.result()):
                self._news.put(None)
        else:
            self._fail(outcome, error)

    def _fail(self, outcome: _Outcome, error: BaseException) -> None:
        self.close()
        outcome.fail(error)
        self._news.put(None)


def alone(task: Task) -> Any:
    """Matrix products of a worker run on one thread, or workers would fight for the cores."""
    keep_freed_memory()
    with single_threaded_blas():
        return task()


class _Going:
    """A procedure, and what it waits for."""

    def __init__(self, procedure: Procedure, urgency: int) -> None:
        self.procedure, self.urgency = procedure, urgency
        self.awaited: Any = None

    def is_free(self) -> bool:
        """Whether what it waits for has come."""
        if isinstance(self.awaited, Until):
            return self.awaited.holds()
        return self.awaited is None or bool(self.awaited.done())

    def next(self) -> Any:
        """What it yields next. Raises StopIteration, and what the procedure or a task raises."""
        is_told = self.awaited is not None and not isinstance(self.awaited, Until)
        found = self.procedure.send(self.awaited.result() if is_told else None)
        self.awaited = None
        return found

    def wait(self, found: Any, board: _Board) -> bool:
        """Wait for what the procedure yielded, if that is something to be waited for."""
        if isinstance(found, Batch):
            self.awaited = board.post(self.urgency, found)
        elif isinstance(found, Future):
            self.awaited = found
            board.listen(found)
        elif isinstance(found, Until):
            self.awaited = found
        return self.awaited is not None


def together(board: _Board, groups: Sequence[Sequence[Procedure]]) -> Iterator[Any]:
    """Go on with each procedure, the most urgent ones first, as soon as what it waits for is there.

    groups: of procedures, those of the first the most urgent. Yields what they yield but for that.
    Raises what a procedure or a task raises.
    """
    going = [_Going(procedure, i) for i, group in enumerate(groups) for procedure in group]
    try:
        while going:
            free = next((each for each in going if each.is_free()), None)
            if free is None:
                if all(isinstance(each.awaited, Until) for each in going):
                    raise AssertionError("procedures wait for each other")
                board.wait()
                continue
            try:
                found = free.next()
            except StopIteration:
                going.remove(free)
                continue
            if not free.wait(found, board):
                yield found
    finally:
        board.close()
        for each in going:
            each.procedure.close()
