"""One result as a terminal table, a Markdown table, or JSON that any parser reads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tqgguf.cli.console import say, say_table


@dataclass(frozen=True)
class Printer:
    """How a report prints: text for a terminal, or Markdown to paste."""

    markdown: bool = False

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
    ) -> None:
        """Print a table: the first column is text, the others are right-aligned."""
        if not self.markdown:
            say_table(list(columns), [list(row) for row in rows], title=title)
            return
        if title:
            say(f"**{title}**\n")
        rule = ["---", *["---:"] * (len(columns) - 1)]
        for cells in (columns, rule, *rows):
            say("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        say("")

    def line(self, text: str) -> None:
        """Print a sentence: a paragraph in Markdown."""
        say(f"{text}\n" if self.markdown else text)


def json_values(value: Any) -> Any:
    """The value with only JSON's types: paths as text, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return json_values(value.tolist())
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: significant digits, or a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.{digits}g}"


def times(value: float | None) -> str:
    """A ratio for people: 1.06x."""
    return "-" if value is None or math.isnan(value) else f"{value:.2f}x"


def short(text: str, *, limit: int = 40) -> str:
    """The end of a long name, which tells files apart."""
    return text if len(text) <= limit else f"...{text[3 - limit :]}"
