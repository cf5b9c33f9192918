"""The command line: one module per command; parse, one library call, print.

A command module decorates its functions with `@app.command()`. Every module of this package is
imported here, so adding a command is adding a file.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules

try:
    from tqgguf.cli.application import app, reason
    from tqgguf.cli.console import show_anything, silence, warn

    for _module in iter_modules(__path__):
        import_module(f"{__name__}.{_module.name}")
except KeyboardInterrupt:  # loading takes a while on a busy machine
    raise SystemExit(130) from None


def main() -> None:
    """Run the command line: exit 0 done, 1 a TqggufError in one line, 2 usage."""
    show_anything()
    try:
        app()
    except OSError as error:  # of a help page, which is printed before any command begins
        silence(sys.stdout)
        warn(f"error: {reason(error)}")
        sys.exit(1)
