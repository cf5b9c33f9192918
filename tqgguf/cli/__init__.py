"""The command line: one module per command; parse, one library call, print.

A command module decorates its functions with `@app.command()`. The package is scanned, so adding a
command is adding a file; only the one that is asked for is imported, which halves the time to
start. `tqgguf.cli.app` has all of them.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from tqgguf.machine.signals import exit_status, postponed, stop_as_after_ctrl_c

# By a word of the options: the module that holds the work of processes, and from how many bytes of
# a model on they are worth it (pipeline/workers.py, calibration/resources.py).
_WORK = {
    "fast": ("tqgguf.pipeline.workers", 1 << 28),
    "--calibrate": ("tqgguf.calibration.work", 1 << 23),
    "best": ("tqgguf.calibration.work", 1 << 23),
}
_WITHOUT_TEXT = {"fast", "--imatrix", "--dry-run", "--help", "-h"}


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _with_commands("")


def _with_commands(name: str) -> Any:
    """The application with a command, NAME.py and NAME_*.py; with all where none has the name."""
    modules = [module.name for module in iter_modules(__path__)]
    wanted = [m for m in modules if name in modules and f"{m}_".startswith(f"{name}_")]
    for module in wanted or modules:
        import_module(f"{__name__}.{module}")
    return import_module(f"{__name__}.application").app


def _expect_processes(arguments: list[str]) -> None:
    """Let what a large model's processes are forked from import its modules while we do ours.

    Where only the inputs are measured that has time enough later: `tqgguf.api.decide` begins it.
    """
    said = {word for argument in arguments for word in argument.split("=")}
    if arguments[:1] != ["quantize"] or ("--threads", "1") in pairwise(arguments):
        return
    for option in _WORK.keys() & said:
        preload, large = _WORK[option]
        if any(_is_large(argument, large) for argument in arguments[1:]):
            from tqgguf.machine.processes import expect_processes

            expect_processes(preload=preload)


def _expect_text(arguments: list[str]) -> None:
    """Let the text that a model's inputs are measured on become tokens while we import the rest."""
    words = [word for argument in arguments for word in argument.split("=")]
    given = dict(pairwise(words)).get("--calibrate")
    is_used = given != "self" and not _WITHOUT_TEXT.intersection(words)
    if is_used and words[:1] == ["quantize"] and words[1:2] and words[1].endswith(".gguf"):
        from tqgguf.calibration.tokens import expect_text

        expect_text(Path(words[1]), Path(given) if given else None)


def _end_programs() -> None:
    """Let no program of llama.cpp go on that nobody waits for any more."""
    tools = sys.modules.get("tqgguf.llamacpp.tools")
    if tools:
        tools.end_all()


def _is_large(argument: str, large: int) -> bool:
    """Whether it is the name of a file or folder of a model of so many bytes."""
    try:
        path = Path(argument)
        files = path.glob("*.safetensors") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files) >= large
    except (OSError, ValueError):
        return False


@contextmanager
def _nothing_thrown_away() -> Iterator[None]:
    """Do not search for garbage what is imported inside, not even when the process ends.

    That takes a tenth of the time to start, and 50 ms in the end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main() -> None:
    """Run the command line: exit 0 done, 1 a TqggufError in one line, 2 usage."""
    stop_as_after_ctrl_c()
    try:
        _run()
    finally:
        _end_programs()


def _run() -> None:
    try:
        _expect_processes(sys.argv[1:])
        with postponed(), _nothing_thrown_away():
            _expect_text(sys.argv[1:])
            app = _with_commands("".join(sys.argv[1:2]))
    except KeyboardInterrupt:  # loading takes a while on a busy machine
        raise SystemExit(exit_status()) from None
    from tqgguf.cli.application import reason
    from tqgguf.cli.console import show_anything, silence, warn

    show_anything()
    try:
        app()
    except OSError as error:  # of a help page, which is printed before any command begins
        silence(sys.stdout)
        warn(f"error: {reason(error)}")
        sys.exit(1)
