"""The Typer application that the command modules register themselves with."""

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tqgguf.cli.console import say, warn
from tqgguf.errors import TqggufError
from tqgguf.version import __version__

_ORDER = ("quantize", "plan", "inspect", "verify", "dequantize", "compare", "eval", "bench")


class _Commands(TyperGroup):
    """Turns a TqggufError into one line on stderr and exit status 1, Ctrl-C into 130."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The main job first, what looks at files afterwards."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():  # what overflows is checked where it is written
                warnings.simplefilter("ignore", RuntimeWarning)
                return super().invoke(ctx)
        except TqggufError as error:
            warn(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            warn(str(interrupt) or "interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        say(f"tqgguf {__version__}")
        raise typer.Exit


@app.callback()
def tqgguf(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rotate, quantize and write GGUF models that stock llama.cpp runs."""
