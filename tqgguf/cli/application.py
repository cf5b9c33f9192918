"""The Typer application that the command modules register themselves with."""

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tqgguf.cli import console
from tqgguf.cli.console import say, warn
from tqgguf.errors import TqggufError
from tqgguf.machine.signals import exit_status
from tqgguf.version import __version__

_ORDER = (
    "quantize",
    "plan",
    "ladder",
    "inspect",
    "verify",
    "dequantize",
    "compare",
    "eval",
    "bench",
)


class _Commands(TyperGroup):
    """Turns what a user or a machine can cause into one line on stderr and an exit status.

    TqggufError and OSError are 1, Ctrl-C is 130, SIGTERM 143. A result that could not be printed is
    1, unless a file is the result and is there; that its reader has seen enough (`| head`) is no
    failure.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The main job first, what looks at files afterwards."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an empty argument: as a path it would mean the current folder."""
        if "" in args:
            raise typer.BadParameter("an argument is empty; expected a name or a value")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        console.out.lost, console.err.lost, console.out.needed = None, None, True
        try:
            result = self._invoke(ctx)
        except OSError as error:
            warn(f"error: {reason(error)}")
            raise typer.Exit(1) from error
        lost = console.out.lost
        if lost is not None and not isinstance(lost, BrokenPipeError):
            warn(f"{'error' if console.out.needed else 'warning'}: cannot print: {reason(lost)}")
        if lost is not None and console.out.needed and not isinstance(lost, BrokenPipeError):
            raise typer.Exit(1)
        return result

    def _invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():  # what overflows is checked where it is written
                warnings.simplefilter("ignore", RuntimeWarning)
                return super().invoke(ctx)
        except TqggufError as error:
            warn(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            warn(str(interrupt) or "interrupted")
            raise typer.Exit(exit_status()) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def reason(error: OSError) -> str:
    """What the system says, and of which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{(error.strerror or str(error)).lower()}"


def _version(value: bool) -> None:
    if value:
        say(f"tqgguf {__version__}")
        raise typer.Exit(0 if console.out.lost is None else 1)


@app.callback()
def tqgguf(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rotate, quantize and write GGUF models that stock llama.cpp runs."""
