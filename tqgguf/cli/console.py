"""Where the command line prints: results to stdout, progress and errors to stderr."""

import errno
import json
import os
import re
import shlex
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from textwrap import wrap
from typing import IO, Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30  # of progress where stderr is no terminal
_LINE = "{desc}: {percentage:.0f}% of {total_fmt}{unit}, {remaining} left, {rate_fmt}"
_NARROWEST = 20  # columns beside a label
_WIDTH_IN_FILES = 160  # where there is no terminal to fit into
_WHOLE = 28  # letters of a word in a table that stay together; paths are longer
_BORDERS = 3  # columns for a line and spaces beside each of a table's columns


class _Console(Console):
    """A console that work outlives: what cannot be printed any more is dropped."""

    lost: OSError | None = None
    needed = True  # whether what it prints is the command's result

    def print(self, *args: Any, **options: Any) -> None:
        """Print, unless the reader has gone or the disk is full."""
        if self.lost is not None:
            return
        try:
            super().print(*args, **options)
        except OSError as error:
            self.lost = error
            silence(self.file)

    def on_broken_pipe(self) -> None:
        """Leave it to `print`: rich would end the program."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def silence(stream: IO[str]) -> None:
    """Let what is still in the stream's buffer go nowhere, or it would fail again at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


out = _Console(highlight=False)
if not out.is_terminal:
    out = _Console(highlight=False, width=_WIDTH_IN_FILES)
err = _Console(stderr=True, highlight=False)


def say_written() -> None:
    """Note that the command's result is a file, and there, whatever becomes of its summary."""
    out.needed = False


def show_anything() -> None:
    """Print what a stream's encoding lacks as escapes: file names know no encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line of the result to stdout, exactly: user text is not markup and is not wrapped."""
    out.print(visible(text), markup=False, soft_wrap=True)


def say_fact(label: str, text: str, *, width: int = 10) -> None:
    """Print what a label says: a line, on a terminal folded to stand beside the label's column."""
    lines = [visible(text)]
    if out.is_terminal:
        room = max(_NARROWEST, out.width - width)
        lines = wrap(lines[0], room, break_on_hyphens=False, break_long_words=False)
    for number, line in enumerate(lines or [""]):
        say(f"{'' if number else label:<{width}}{line}")


def about(seconds: float) -> str:
    """A duration that was foretold, no more exact than that."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def visible(text: str) -> str:
    """Text of a file that nobody vouches for, without control codes that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def quoted(path: Path | str) -> str:
    """A file's name as a shell takes it, and no program takes for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def plain_name(text: str) -> str:
    """A name that needs no quotes anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


def warn(text: str) -> None:
    """Print a line to stderr, exactly."""
    err.print(visible(text), markup=False, soft_wrap=True)


def say_json(document: Any) -> None:
    """Print one JSON document to stdout."""
    out.print(json.dumps(document, indent=2), markup=False, soft_wrap=True)


def say_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """Print a table: the first column is text, the others are right-aligned.

    No number and no tensor's name is folded: where they take more than the terminal has, lines are
    longer than it.
    """
    table = Table(title=visible(title) if title else None, title_justify="left")
    shown = [[visible(cell) for cell in line] for line in (columns, *rows)]
    words = [max(map(_longest_word, column)) for column in zip(*shown, strict=True)]
    for i, (column, width) in enumerate(zip(shown[0], words, strict=True)):
        side: JustifyMethod = "left" if i == 0 else "right"
        table.add_column(column, justify=side, overflow="fold", min_width=width)
    for row in shown[1:]:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    least = sum(words) + _BORDERS * len(words) + 1
    table.width = least if least > out.width else None
    out.print(table, crop=False)


def _longest_word(cell: str) -> int:
    """The length of the longest, or as much of it as stays together."""
    return min(_WHOLE, max(map(len, cell.split()), default=0))


class Progress:
    """How far a long job is, with an ETA, on stderr.

    A bar on a terminal; elsewhere (a log file, a pipe) a plain line now and then, so that a log of
    hours stays readable. quiet: nothing at all.
    """

    def __init__(self, total: int, name: str, *, unit: str = "B", quiet: bool = False) -> None:
        self._quiet, self._plain = quiet, not quiet and not err.is_terminal
        large = len(unit) == 1  # bytes and weights, not files
        self._bar: tqdm[Any] = tqdm(
            total=total,
            unit=unit if large else f" {unit}",
            unit_scale=large,
            desc=name,
            disable=quiet,
            mininterval=_SECONDS_BETWEEN_LINES if self._plain else 0.1,
            file=_Lines() if self._plain else None,
            bar_format=_LINE if self._plain else None,
            leave=not self._plain,
            delay=_SECONDS_BETWEEN_LINES if self._plain else 0,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int = 1) -> None:
        """Count `count` more units as done."""
        self._bar.update(count)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._plain:
            warn(text)
        elif not self._quiet:
            self._bar.write(text, file=sys.stderr)


class _Lines:
    """Turns a bar that redraws itself into lines: what tqdm draws in front of its bar's end."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            warn(line)

    def flush(self) -> None:
        """Lines are printed as they are written."""


def progress(total: int, name: str, *, unit: str = "B", quiet: bool = False) -> Progress:
    """The progress of a job of `total` units."""
    return Progress(total, name, unit=unit, quiet=quiet)
