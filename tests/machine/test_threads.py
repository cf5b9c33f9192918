"""Work on threads: everything is done, errors come out, BLAS gets its threads back."""

import threading

import pytest
import threadpoolctl

from tqgguf.machine.threads import default_threads, run_all, single_threaded_blas


@pytest.mark.parametrize("threads", [1, 2, None])
def test_every_item_is_worked_on(threads):
    done = []
    run_all(done.append, list(range(50)), threads=threads)
    assert sorted(done) == list(range(50))


def test_two_threads_really_run_side_by_side():
    meet = threading.Barrier(2, timeout=20)
    run_all(lambda _: meet.wait(), [1, 2], threads=2)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_worker_comes_out(threads):
    def work(item):
        if item == 3:
            raise ValueError("item 3")

    with pytest.raises(ValueError, match="item 3"):
        run_all(work, list(range(6)), threads=threads)


def blas_threads():
    pools = threadpoolctl.threadpool_info()
    return [pool["num_threads"] for pool in pools if "numpy" in pool["filepath"]]


def test_blas_is_single_threaded_inside_and_restored():
    with threadpoolctl.threadpool_limits(2):
        with single_threaded_blas():
            assert blas_threads() == [1]
        assert blas_threads() == [2]


def test_blas_is_single_threaded_until_the_last_of_several_threads_has_left():
    with threadpoolctl.threadpool_limits(2):
        one, other = single_threaded_blas(), single_threaded_blas()
        one.__enter__()
        with other:  # as threads of a cluster's worker come and go
            one.__exit__(None, None, None)
            assert blas_threads() == [1]
        assert blas_threads() == [2]


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_is_single_threaded_in_workers_however_few(threads):
    seen = []
    with threadpoolctl.threadpool_limits(2):
        run_all(lambda _: seen.append(blas_threads()), [1, 2], threads=threads)
    assert seen == [[1], [1]]


def test_default_threads_is_positive():
    assert default_threads() >= 1
