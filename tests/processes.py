"""Watch processes from the outside."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LISTEN = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""

SLOW = """
import time
from tqgguf.pipeline import conversion
report = conversion.report_on
conversion.report_on = lambda *args: time.sleep(0.05) or report(*args)
"""  # a run that a signal finds at work, whatever the machine


@contextmanager
def started(command: list[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that signals reach, also where the tests run in the background; gone afterwards.

    What a shell starts in the background, and all that starts in turn, ignores SIGINT, and under
    nohup SIGHUP.
    """
    shell = [sys.executable, "-c", _LISTEN, *command]
    with subprocess.Popen(shell, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
