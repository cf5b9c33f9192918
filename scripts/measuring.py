"""Run a command and watch how long it takes and how much memory it and its children take."""

import subprocess
import tempfile
import time
from contextlib import suppress
from typing import NamedTuple

import psutil


class Usage(NamedTuple):
    """What a command and all processes below it took.

    seconds: of the clock. peak: resident bytes; pages that processes share and pages of mapped
    files count for each of them. own: the same without shared and mapped pages, where the system
    tells them apart. processor: seconds of all processors.
    """

    seconds: float
    peak: int
    own: int
    processor: float


def run(command: list[str], *, env: dict[str, str] | None = None) -> Usage:
    """Run a command to its end; SystemExit with what it said where it fails."""
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=env)
        peak = own = 0
        times: dict[int, float] = {}
        while process.poll() is None:
            seen, alone = resident(process, times)
            peak, own = max(peak, seen), max(own, alone)
            with suppress(psutil.TimeoutExpired):
                process.wait(0.05)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}: {process.returncode}\n{said.read()}")
    return Usage(seconds, peak, own, sum(times.values()))


def resident(process: psutil.Process, times: dict[int, float]) -> tuple[int, int]:
    """Resident bytes of a process and all below it, and how many are their own.

    times: processor seconds by process number, brought up to date. Of those that have just ended,
    nothing is added.
    """
    total = own = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            found = each.memory_info()
            total += found.rss
            own += found.rss - getattr(found, "shared", 0)
            spent = each.cpu_times()
            times[each.pid] = spent.user + spent.system
    except psutil.NoSuchProcess:
        pass
    return total, own
