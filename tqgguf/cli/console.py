"""Where the command line prints: results to stdout, progress and errors to stderr."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

_WIDTH_IN_FILES = 160  # where there is no terminal to fit into

out = Console(highlight=False)
if not out.is_terminal:
    out = Console(highlight=False, width=_WIDTH_IN_FILES)
err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a line of the result to stdout, exactly: user text is not markup and is not wrapped."""
    out.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a line to stderr, exactly."""
    err.print(text, markup=False, soft_wrap=True)


def say_json(document: Any) -> None:
    """Print one JSON document to stdout."""
    out.print(json.dumps(document, indent=2), markup=False, soft_wrap=True)


def say_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """Print a table: the first column is text, the others are right-aligned."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    out.print(table)


def progress(total: int, name: str, *, unit: str = "B", quiet: bool = False) -> "tqdm[Any]":
    """A progress bar with an ETA on stderr; none where stderr is no terminal."""
    return tqdm(total=total, unit=unit, unit_scale=True, desc=name, disable=True if quiet else None)
