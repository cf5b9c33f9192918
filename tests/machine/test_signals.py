"""What ends a run as Ctrl-C does, and with which status."""

import signal
import subprocess
import sys
from functools import partial

import pytest

from tqgguf.machine.signals import STOPPING, held_back

RUN = """
import signal, sys
from tqgguf.machine.signals import exit_status, stop_as_after_ctrl_c
number = int(sys.argv[1])
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
stop_as_after_ctrl_c()
signal.raise_signal(signal.SIGHUP)
try:
    signal.raise_signal(number)
except KeyboardInterrupt:
    if number == signal.SIGTERM:
        signal.raise_signal(number)  # what is being left must not be disturbed
    sys.exit(exit_status())
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_ctrl_c_once(number, status):
    done = subprocess.run([sys.executable, "-c", RUN, str(int(number))], check=False)
    assert done.returncode == status


def test_what_is_started_meanwhile_never_sees_them():
    code = "import signal; print(*sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))"
    show = partial(subprocess.run, [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with held_back():
        inside = show(check=True).stdout
    assert set(map(int, inside.split())) == {*map(int, STOPPING)}
    assert show(check=True).stdout == "\n"
