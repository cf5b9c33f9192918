"""Tasks through pipes: in order, of any size, and no accident leaves anybody waiting."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing.context import SpawnContext

import pytest

from tests.processes import wait_for
from tqgguf.errors import ToolError
from tqgguf.machine import crew as crews
from tqgguf.machine.processes import processes
from tqgguf.machine.workers import Workers

LARGE = b"x" * (1 << 20)  # more than any pipe takes


@pytest.fixture(scope="module")
def two():
    with processes(2, preload="tqgguf.machine.workers") as workers:
        yield workers


class Awkward(Exception):  # noqa: N818 - another process cannot make it from its arguments
    def __init__(self, one, other):
        super().__init__(f"{one} {other}")


def awkward():
    raise Awkward("spilt", "milk")


def where():
    return lambda: None


def slowly(seconds, value):
    time.sleep(seconds)
    return value


def test_large_tasks_and_results_do_not_wait_for_each_other(two):
    for executor in (two, two.each[0]):
        futures = [executor.submit(bytes.upper, LARGE) for _ in range(6)]
        assert all(f.result(timeout=30) == LARGE.upper() for f in futures)


def test_what_cannot_travel_is_an_error_and_the_worker_goes_on(two):
    with pytest.raises((AttributeError, TypeError, ValueError), match="lambda"):
        two.submit(where()).result(timeout=30)
    with pytest.raises((AttributeError, TypeError, ValueError), match="lambda"):
        two.submit(where).result(timeout=30)
    with pytest.raises(RuntimeError, match=r"Awkward\('spilt milk'\)"):
        two.submit(awkward).result(timeout=30)
    assert two.submit(len, "abc").result(timeout=30) == 3


def test_an_error_says_where_it_was(two):
    with pytest.raises(ZeroDivisionError) as caught:
        two.submit(divmod, 1, 0).result(timeout=30)
    assert "in _outcome" in caught.value.__notes__[0]


def test_whoever_is_idle_takes_the_next_task(two):
    slow = two.submit(slowly, 0.5, 0)
    others = [two.submit(os.getpid) for _ in range(20)]
    assert len({f.result(timeout=30) for f in others}) == 1
    assert not slow.done()


def test_a_task_that_waits_can_be_cancelled(two):
    busy = [two.submit(slowly, 0.2, i) for i in range(8)]
    assert busy[-1].cancel()
    assert [f.result(timeout=30) for f in busy[:-1]] == list(range(7))


@pytest.mark.parametrize("shared", [True, False])
def test_a_worker_that_is_killed_fails_its_tasks_and_later_ones(shared):
    with processes(1, preload="tqgguf.machine.workers") as workers:
        executor = workers if shared else workers.each[0]
        pid = executor.submit(os.getpid).result(timeout=30)
        tasks = [executor.submit(slowly, 60, None) for _ in range(4)]
        os.kill(pid, signal.SIGKILL)
        for task in tasks:
            with pytest.raises(ToolError, match=r"a worker process died, perhaps .* --threads 1"):
                task.result(timeout=30)
        with pytest.raises(ToolError, match="a worker process died"):
            executor.submit(os.getpid).result(timeout=30)


class NoRoom(SpawnContext):
    """A system that has no room for another process."""

    class Process:
        pid = None

        def __init__(self, **_):
            pass

        def start(self):
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def test_a_process_that_cannot_be_started_is_one_that_died():
    with Workers(2, NoRoom(), int) as workers:
        for executor in (workers, workers.each[1]):
            with pytest.raises(ToolError, match="a worker process died before it began"):
                executor.submit(int).result(timeout=10)


def test_a_script_whose_main_module_cannot_be_imported_is_told_why(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from tqgguf.machine.processes import processes\n"
        "with processes(1, preload='tqgguf.machine.workers') as workers:\n"
        "    workers.submit(int).result(timeout=30)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert "ToolError: a worker process died before it began; what a script" in ended.stderr
    assert 'below `if __name__ == "__main__":`' in ended.stderr


def test_a_crew_gives_the_last_tasks_to_whoever_is_idle():
    told = threading.Event()
    with crews.threads(2) as crew:
        waited, *_ = crew.run([partial(told.wait, 10), int, told.set])
    assert waited  # who sets it does not wait behind who waits for it


def test_the_processes_are_gone_in_the_end():
    with processes(2, preload="tqgguf.machine.workers") as workers:
        pids = [worker.submit(os.getpid).result(timeout=30) for worker in workers.each]
        last = workers.submit(slowly, 0.1, "done")
    assert last.result(timeout=0) == "done"
    assert len(set(pids)) == 2
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), seconds=10)  # noqa: PTH110
