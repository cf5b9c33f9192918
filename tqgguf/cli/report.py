"""`tqgguf report`: what rotation did to weights, and the TurboQuant paper's own quantizers."""

from collections.abc import Sequence
from typing import TypeVar

import typer

from tqgguf.cli.application import app
from tqgguf.errors import PlanError

Name = TypeVar("Name", bound=str)

reports = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(reports, name="report", help="Measure what rotation and quantization do.")


def choice(name: str, known: Sequence[Name], option: str) -> Name:
    """The known name that a text means, whatever its case. Raises PlanError."""
    for choice in known:
        if choice == name.lower():
            return choice
    raise PlanError(f"{option} {name} is unknown; known: {', '.join(known)}")
