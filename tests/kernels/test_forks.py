"""Forked workers: results, shared memory, errors, and children that die."""

import os
import signal
import threading

import numpy as np
import pytest

from tqgguf.errors import OutputError, WeightError
from tqgguf.kernels.forks import Crew, can_fork, fill_shared, shared_empty

linux = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux only")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@linux
def test_a_crew_answers_from_other_processes():
    with Crew(lambda number: (number + 1, os.getpid()), 2) as crew:
        answers = [crew(number) for number in range(4)]
    assert [value for value, _ in answers] == [1, 2, 3, 4]
    assert len({pid for _, pid in answers}) == 2
    assert os.getpid() not in {pid for _, pid in answers}


@linux
def test_a_crew_works_side_by_side():
    meet = [os.pipe(), os.pipe()]  # each child lets the other go on

    def work(me):
        os.write(meet[me][1], b"x")
        return os.read(meet[1 - me][0], 1)

    answers = []
    with Crew(work, 2) as crew:
        threads = [threading.Thread(target=lambda i=i: answers.append(crew(i))) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert answers == [b"x", b"x"]


@linux
def test_an_error_in_a_child_is_raised_here_and_the_child_lives_on():
    def work(fails):
        if fails:
            raise WeightError("3 weights are NaN")
        return os.getpid()

    with Crew(work, 1) as crew:
        pid = crew(False)
        with pytest.raises(WeightError, match="3 weights are NaN"):
            crew(True)
        assert crew(False) == pid


@linux
def test_a_killed_child_is_an_error():
    with Crew(die, 1) as crew, pytest.raises(OutputError, match="worker process died"):
        crew()


@linux
def test_children_are_gone_afterwards():
    with Crew(os.getpid, 3) as crew:
        pid = crew()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@linux
def test_a_child_does_not_fork():
    with Crew(can_fork, 1) as crew:
        assert crew() is False


@pytest.mark.parametrize("threads", [1, 2, 5, None])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_shared_memory_is_filled(threads, count):
    out = shared_empty((count, 3), np.dtype(np.float32))

    def work(i):
        out[i] = i

    fill_shared(work, range(count), threads=threads)
    np.testing.assert_array_equal(out, np.arange(count)[:, None] * np.ones((1, 3)))


@pytest.mark.parametrize("place", [0, 1, 39])
def test_an_error_in_any_share_comes_out(place):
    def work(i):
        if i == place:
            raise WeightError(f"item {i}")

    with pytest.raises(WeightError, match=f"item {place}"):
        fill_shared(work, range(40), threads=2)
