"""Run a command and watch how long it takes and how much memory it and its children take."""

import subprocess
import tempfile
import time

import psutil


def run(command: list[str]) -> tuple[float, int]:
    """Seconds, and the peak of resident bytes over a process and all below it.

    Pages that processes share and pages of mapped files count for each of them.
    """
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}: {process.returncode}\n{said.read()}")
    return seconds, peak


def resident(process: psutil.Process) -> int:
    """Resident bytes of a process and all below it; of those that have just ended, none."""
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total
