"""Signals that ask a run to stop: Ctrl-C, a manager of services or of jobs, a closed terminal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = [  # Windows has no SIGHUP
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]

_received = signal.SIGINT


def stop_as_after_ctrl_c() -> None:
    """Let all of them end the run as Ctrl-C does, but those that are ignored, as under nohup."""
    for number in STOPPING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def exit_status() -> int:
    """That of a run which KeyboardInterrupt has ended: 130, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + _received


@contextmanager
def postponed() -> Iterator[None]:
    """Let all of them come when the block ends; threads that begin inside never see them.

    One that came amid imports could be lost (Python drops what a weak reference's callback raises)
    or come out as another error.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def held_back() -> Iterator[None]:
    """Wait with all of them for a moment; processes that are started inside never see them."""
    with postponed():
        if hasattr(signal, "pthread_sigmask"):
            from multiprocessing import resource_tracker  # not everywhere

            resource_tracker.ensure_running()  # which lets some of them through again
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        yield


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Stop once: some send a signal to a process and to its group, or to a container again."""
    global _received
    _received = signal.Signals(number)
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
