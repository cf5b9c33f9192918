"""Find llama.cpp's programs and run them so that none outlives us.

A program runs in a session of its own. Ctrl-C, SIGTERM and SIGHUP first kill that whole session and
then reach this process as if nothing had stood between; so does any exception.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import IO, Any, ClassVar

from tqgguf.errors import ToolError
from tqgguf.machine.cache import user_cache
from tqgguf.machine.signals import STOPPING

VERSION = "0.3.36"  # the llama-cpp-python release whose llama.cpp `make llama.cpp` builds
LOG_PREFIX = r"\d+\.\d\d\.\d{3}\.\d{3} "  # "0.00.026.544 E text"; without it: printed, not logged
LOGGED = re.compile(rf"{LOG_PREFIX}(?P<level>[A-Z]) +(?P<text>(?:(?!{LOG_PREFIX}).)*)")
ERROR_WORD = re.compile(r"error|failed|invalid|unable", re.IGNORECASE)
HINTS = {
    "SIGKILL": "the system probably ran out of memory",
    "SIGILL": "it was built for another CPU, or this one faults on AMX; rebuild: make llama.cpp",
    "SIGSEGV": "some virtual CPUs fault on AMX tiles; rebuild without them with: make llama.cpp",
}


Work = Callable[[], object]


def _nothing() -> None:
    """What there is to be done while a program runs."""


@dataclass(frozen=True)
class ToolOutput:
    """What a program printed."""

    stdout: str
    stderr: str


def built_tools() -> Path:
    """Where `make llama.cpp` puts the programs."""
    return user_cache() / f"llama.cpp-{VERSION}" / "bin"


def find(name: str) -> Path:
    """The program's path: from $LLAMA_CPP_BIN if that is set, else PATH, else the build cache.

    Raises ToolError if it is in none of them.
    """
    chosen = os.environ.get("LLAMA_CPP_BIN")
    places = [chosen] if chosen else [os.environ.get("PATH", os.defpath), str(built_tools())]
    for place in places:
        if found := shutil.which(name, path=place):
            return Path(found)
    where = f"$LLAMA_CPP_BIN ({chosen})" if chosen else f"PATH or {built_tools()}"
    raise ToolError(f"{name}: not found in {where}; build it with: make llama.cpp")


def run(name: str, *arguments: str | Path | int) -> ToolOutput:
    """Run one of llama.cpp's programs to its end.

    Raises ToolError if it is missing, cannot start, is killed by a signal, or exits with an error;
    some failures leave exit status 0, so callers still look for the result they wanted.
    """
    return _run(name, [str(find(name)), *map(str, arguments)])


def ask(name: str, *arguments: str | Path | int, start: str, meanwhile: Work) -> ToolOutput:
    """Run one of llama.cpp's programs, but only until it has printed a line that starts so.

    meanwhile: called as soon as the program runs. Raises ToolError as `run` does; a program that
    ends without that line may leave exit status 0 as well.
    """
    with _Child() as child:
        argv = [str(find(name)), *map(str, arguments)]
        status, output = child.ask(argv, start.encode(), meanwhile)
    return _checked(name, status, output)


def run_module(module: str, *arguments: str | Path | int, meanwhile: Work = _nothing) -> ToolOutput:
    """Run a Python module as a program, as `run` does; meanwhile: called as soon as it runs."""
    return _run(module, [sys.executable, "-m", module, *map(str, arguments)], meanwhile)


def _run(name: str, argv: Sequence[str], meanwhile: Work = _nothing) -> ToolOutput:
    with _Child() as child:
        status, output = child.run(argv, meanwhile=meanwhile)
    return _checked(name, status, output)


def _checked(name: str, status: int, output: ToolOutput) -> ToolOutput:
    if status:
        raise ToolError(f"{name}: {fate(status)}{cause(output)}")
    return output


def end_all() -> None:
    """Kill every program that a thread of this process waits for, now or later."""
    _Child.all_end = True
    for child in [*_Child.running]:
        child.kill()


def run_watched(
    name: str, argv: Sequence[str | Path], grows: Callable[[], int], *, patience: float
) -> tuple[int, ToolOutput]:
    """Run a program of another kind; its exit status and what it printed.

    Raises ToolError if it cannot start, or if for `patience` seconds neither what it printed nor
    `grows()` has changed: then it hangs, and is killed.
    """
    with _Child() as child:
        return child.run([str(part) for part in argv], grows=grows, patience=patience, name=name)


def version(name: str = "llama-perplexity") -> tuple[str, str]:
    """What identifies the build: the text that --version prints to either stream."""
    output = run(name, "--version")
    return output.stdout, output.stderr


def cause(output: ToolOutput) -> str:
    """The first error a program printed, as ": text", or nothing.

    llama.cpp logs from a thread of its own and may exit before it has written everything.
    """
    for line in (*output.stderr.splitlines(), *output.stdout.splitlines()):
        logged = list(LOGGED.finditer(line))
        if any(entry["level"] == "E" for entry in logged):
            return ": " + next(e["text"] for e in logged if e["level"] == "E")
        if not logged and ERROR_WORD.search(line):
            return ": " + line.strip()
    return ""


def fate(status: int) -> str:
    """How a program that failed came to its end."""
    if status > 0:
        return f"exited with status {status}"
    name = signal.Signals(-status).name
    hint = f"; {HINTS[name]}" if name in HINTS else ""
    return f"killed by {name}{hint}"


class _Child:
    """A child process that dies with the block it was started in, or with a stopping signal."""

    running: ClassVar[set["_Child"]] = set()
    all_end: ClassVar[bool] = False

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.received: int | None = None
        self.handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Child":
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.handlers[number] = signal.signal(number, self._stop)
        self.running.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.running.discard(self)
        if self.process is not None:
            with self.process:  # which is waited for, and its pipe closed
                pass
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.received is not None:
            signal.raise_signal(self.received)

    def run(
        self,
        argv: Sequence[str],
        *,
        meanwhile: Work = _nothing,
        grows: Callable[[], int] | None = None,
        patience: float = 0,
        name: str = "",
    ) -> tuple[int, ToolOutput]:
        # Into files, not pipes: llama.cpp logs from a thread that dies with the program, and before
        # a pipe it was seen to lose the last lines in half of all runs on a busy machine.
        with TemporaryFile() as out, TemporaryFile() as err:
            process = self._start(argv, out, err)
            meanwhile()
            if grows is None:
                return process.wait(), ToolOutput(_text(out), _text(err))

            def progress() -> tuple[int, ...]:
                return (grows(), *(os.fstat(file.fileno()).st_size for file in (out, err)))

            status = _wait_while(process, progress, patience, name)
            return status, ToolOutput(_text(out), _text(err))

    def ask(self, argv: Sequence[str], start: bytes, meanwhile: Work) -> tuple[int, ToolOutput]:
        printed = []
        with TemporaryFile() as err:
            process = self._start(argv, subprocess.PIPE, err)
            meanwhile()
            for line in process.stdout or ():
                printed.append(line.decode(errors="replace"))
                if line.startswith(start) and line.endswith(b"\n"):
                    return 0, ToolOutput(printed[-1], "")
            return process.wait(), ToolOutput("".join(printed), _text(err))

    def _start(
        self, argv: Sequence[str], out: IO[bytes] | int, err: IO[bytes]
    ) -> "subprocess.Popen[bytes]":
        try:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            raise ToolError(f"{argv[0]}: cannot be run: {error.strerror}") from None
        if self.received is not None or self.all_end:  # that came before there was a child to kill
            self.kill()
        return self.process

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self.kill()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            _kill_session(self.process)


def _wait_while(
    process: "subprocess.Popen[bytes]",
    progress: Callable[[], tuple[int, ...]],
    patience: float,
    name: str,
) -> int:
    """Wait for the end as long as there is progress; ToolError when there is none any more."""
    seen, since = progress(), time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(min(1.0, patience / 4))
        now = progress()
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            _kill_session(process)
            process.wait()
            raise ToolError(f"{name} gave no sign of life for {patience:.0f} s; it was killed")


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all it started; on Windows, which has no sessions, the process alone."""
    if not hasattr(os, "killpg"):
        process.kill()
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
