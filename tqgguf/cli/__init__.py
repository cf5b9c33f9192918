"""The command line: one module per command; parse, one library call, print.

A command module decorates its functions with `@app.command()`. The package is scanned, so adding a
command is adding a file; only the one that is asked for is imported, which halves the time to
start. `tqgguf.cli.app` has all of them.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import Any


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


def main() -> None:
    """Run the command line: exit 0 done, 1 a TqggufError in one line, 2 usage."""
    try:
        app = _with_commands("".join(sys.argv[1:2]))
    except KeyboardInterrupt:  # loading takes a while on a busy machine
        raise SystemExit(130) from None
    from tqgguf.cli.application import reason
    from tqgguf.cli.console import show_anything, silence, warn

    show_anything()
    try:
        app()
    except OSError as error:  # of a help page, which is printed before any command begins
        silence(sys.stdout)
        warn(f"error: {reason(error)}")
        sys.exit(1)
