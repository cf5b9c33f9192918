"""Procedures go on as soon as what they wait for is there; what is urgent is done first."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tqgguf.errors import ToolError
from tqgguf.machine import crew as crews
from tqgguf.machine.board import Batch, Shared, Until
from tqgguf.machine.crew import Crew


@pytest.fixture(params=[1, 3])
def crew(request):
    with crews.threads(request.param) as found:
        yield found


def test_what_is_urgent_is_done_first():
    done = []

    def procedure(name):
        for _ in range(2):
            yield Batch([partial(done.append, name)] * 2)

    assert list(Crew().together([procedure("a")], [procedure("b"), procedure("c")])) == []
    assert done == [*"aaaa", *"bbcc" * 2]  # of the same urgency by turns


def test_procedures_wait_for_each_other_and_for_futures(crew):
    told = []

    def first():
        told.append((yield pool.submit(str.upper, "future")))
        yield Until(lambda: "second" in told)
        yield "found"

    def second():
        (text,) = yield Batch([partial(str.lower, "SECOND")])
        told.append(text)

    with ThreadPoolExecutor(1) as pool:
        assert list(crew.together([first()], [second()])) == ["found"]
    assert sorted(told) == ["FUTURE", "second"]


def test_results_come_in_the_order_of_the_tasks(crew):
    numbers = range(40)
    assert crew.run([partial(int, n) for n in numbers]) == list(numbers)
    assert crew.run([]) == []


def test_more_tasks_than_workers_at_home_stay_there(crew):
    first, second = (crew.run([threading.get_ident] * 7, at_home=True) for _ in range(2))
    assert first == second
    assert len(set(first)) == max(1, len(crew.workers))


def test_an_error_ends_all_procedures(crew):
    started, ended = [], []

    def failing():
        yield Until(lambda: len(started) == 2)
        yield Batch([partial(divmod, 1, 0)])

    def long(name):
        started.append(name)
        try:
            while True:
                yield Batch([int])
        finally:
            ended.append(name)

    with pytest.raises(ZeroDivisionError):
        list(crew.together([failing()], [long("a"), long("b")]))
    assert sorted(ended) == started == ["a", "b"]


def test_nobody_waits_for_ever():
    def procedure():
        yield Until(lambda: False)

    with pytest.raises(AssertionError, match="wait for each other"):
        list(Crew().together([procedure()], [procedure()]))


def test_nothing_begins_after_an_error():
    begun = []
    with crews.threads(2) as found:
        board = Shared(found.workers)
        failed = board.post(1, Batch([partial(divmod, 1, 0)]))
        board.wait()
        assert not board.post(0, Batch([partial(begun.append, None)] * 9)).done()
        found.run([int])  # after whatever they were given
    assert not begun
    with pytest.raises(ZeroDivisionError):
        failed.result()


class Full(ThreadPoolExecutor):
    """An executor that takes two tasks."""

    left = 2

    def submit(self, *args):
        self.left -= 1
        if self.left < 0:
            raise ToolError("it is gone")
        return super().submit(*args)


def test_a_worker_that_takes_nothing_any_more_is_an_error():
    """Whoever waits for what it was to do does not do so for ever."""
    with Full(1) as first, Full(1) as second, pytest.raises(ToolError, match="it is gone"):
        Crew([first, second]).run([partial(time.sleep, 0.01)] * 9)
