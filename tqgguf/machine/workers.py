"""Processes that are given their tasks through pipes, all of them served by one thread.

An executor of the standard library passes a task through two threads and a process' queue, which
takes five times as long (docs/LOG.md): where many processes do small tasks, they all wait for
whoever hands these out.
"""

import pickle
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from threading import Lock, Thread
from typing import Any, TypeVar

from tqgguf.errors import ToolError

Result = TypeVar("Result")

_AHEAD_BYTES = 1 << 13  # that a pipe of any system takes in while nobody reads it
_BEGUN = b"begun"  # what a process says first
_DIED = (
    "a worker process died, perhaps for lack of memory; a smaller --max-memory or --threads 1 "
    "takes less"
)
_NEVER_BEGAN = (
    "a worker process died before it began; what a script does must stand below "
    '`if __name__ == "__main__":`, and if that is so, this system has no room for more processes: '
    "--threads 1 takes none"
)


class Worker(Executor):
    """A process that does in order what it is given; what comes next is in its pipe already.

    It may be given tasks before it is started. Once it has died, they raise ToolError. Somebody
    has to call `receive` when there are `results`.
    """

    def __init__(self, context: BaseContext, begin: Callable[[], object]) -> None:
        tasks, self._tasks = context.Pipe(duplex=False)
        self.results, results = context.Pipe(duplex=False)
        self._theirs = tasks, results
        self._lock, self.is_dead, self._has_begun = Lock(), False, False
        self._waiting: deque[tuple[Future[Any], bytes]] = deque()
        self._given: deque[tuple[Future[Any], int]] = deque()
        self._process: Any = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(begin, tasks, results), daemon=True
        )

    def start(self) -> None:
        """Start the process; one that cannot be started has died."""
        with suppress(OSError, EOFError):
            self._process.start()
        for end in self._theirs:
            end.close()

    @property
    def load(self) -> int:
        """How many tasks it has been given that it has not done."""
        return len(self._given) + len(self._waiting)

    def submit(self, task: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Do a task after those before it."""
        outcome: Future[Result] = Future()
        outcome.set_running_or_notify_cancel()
        self.give(_task(task, args, kwargs), outcome)
        return outcome

    def give(self, data: bytes, outcome: Future[Any]) -> None:
        """Do a task, pickled, after those before it; outcome becomes what it returns or raises."""
        with self._lock:
            self._waiting.append((outcome, data))
            self._send()
        if self.is_dead:
            self._lose()

    def _send(self) -> None:
        """Fill the pipe; a task that may not fit goes when the process has nothing else to do.

        So it never happens that each side waits for the other to read.
        """
        while self._waiting:
            outcome, data = self._waiting[0]
            if self._given and sum(n for _, n in self._given) + len(data) > _AHEAD_BYTES:
                return
            self._given.append((outcome, len(data)))
            self._waiting.popleft()
            try:
                self._tasks.send_bytes(data)
            except OSError:  # it has died, which `receive` finds out as well
                return

    def receive(self) -> bool:
        """Take over a result from `results`, which are ready; False where the process has ended."""
        try:
            data = self.results.recv_bytes()
        except (EOFError, OSError):
            self.is_dead = True
            self._lose()
            return False
        if data == _BEGUN:
            self._has_begun = True
            return True
        with self._lock:
            outcome, _ = self._given.popleft()
            self._send()
        _settle(outcome, data)
        return True

    def _lose(self) -> None:
        """Nobody does these tasks any more."""
        with self._lock:
            lost = [outcome for outcome, _ in (*self._given, *self._waiting)]
            self._given.clear()
            self._waiting.clear()
        for outcome in lost:
            outcome.set_exception(ToolError(_DIED if self._has_begun else _NEVER_BEGAN))

    def dismiss(self) -> None:
        """Let the process end after what is in its pipe."""
        with self._lock:
            self._tasks.close()

    def join(self) -> None:
        """Wait until the process has ended, if there was one."""
        if self._process.pid is not None:
            self._process.join()


class Workers(Executor):
    """Several workers; whoever is idle takes the next task."""

    def __init__(self, count: int, context: BaseContext, begin: Callable[[], object]) -> None:
        self.each: Sequence[Worker] = [Worker(context, begin) for _ in range(count)]
        self._lock = Lock()
        self._waiting: deque[tuple[Future[Any], bytes]] = deque()
        self._receiver = Thread(target=self._receive, daemon=True)
        self._receiver.start()
        # a fork takes 3 ms, and 16 of them as long as the first tasks
        Thread(target=self._start, daemon=True).start()

    def _start(self) -> None:
        for worker in self.each:
            worker.start()

    def submit(self, task: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Do a task after those that have waited for longer."""
        outcome: Future[Result] = Future()
        data = _task(task, args, kwargs)
        with self._lock:
            self._waiting.append((outcome, data))
        self._feed()
        return outcome

    def _feed(self) -> None:
        """Give whoever is idle something to do, a dead one first: it fails, and so must the run."""
        with self._lock:
            while self._waiting:
                least = min(self.each, key=lambda worker: (not worker.is_dead, worker.load))
                if least.load:
                    return
                outcome, data = self._waiting.popleft()
                if outcome.set_running_or_notify_cancel():
                    least.give(data, outcome)

    def _receive(self) -> None:
        """Take over the results of all workers as they come, until all have ended."""
        workers = {worker.results: worker for worker in self.each}
        while workers:
            for results in wait(list(workers)):
                if not workers[results].receive():  # type: ignore[index]
                    del workers[results]  # type: ignore[arg-type]
                self._feed()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes after what they were given."""
        del cancel_futures  # nobody who is gone wants what has not begun
        with self._lock:
            for outcome, _ in self._waiting:
                outcome.cancel()
            self._waiting.clear()
        for worker in self.each:
            worker.dismiss()
        if wait:
            self._receiver.join()  # until all were started, and have ended
        for worker in self.each if wait else ():
            worker.join()


def _task(task: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    return pickle.dumps(partial(task, *args, **kwargs))


def _settle(outcome: Future[Any], data: bytes) -> None:
    result, error = pickle.loads(data)
    if error is None:
        outcome.set_result(result)
    else:
        outcome.set_exception(error)


def _serve(begin: Callable[[], object], tasks: Connection, results: Connection) -> None:
    """Do what comes through a pipe until it is closed."""
    begin()
    try:
        results.send_bytes(_BEGUN)
        while True:
            results.send_bytes(_outcome(tasks.recv_bytes()))
    except (EOFError, OSError):
        return


def _outcome(task: bytes) -> bytes:
    """What a task returns, or what it raises with a note that says where; pickled."""
    try:
        return pickle.dumps((pickle.loads(task)(), None))
    except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
        error.add_note("".join(traceback.format_exception(error)))
        return _portable(error)


def _portable(error: BaseException) -> bytes:
    """An error, or what is said of it where another process could not read it."""
    try:
        data = pickle.dumps((None, error))
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - classes of errors fail in many ways
        return pickle.dumps((None, RuntimeError(repr(error))))
    return data
