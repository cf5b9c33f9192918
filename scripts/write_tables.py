"""Write the generated tables of the pages in docs: architectures, streams, options, folders.

Run by `make tables` after a change to what they tell of; tests/test_docs.py fails while a table is
stale. With --check nothing is written, and the names of stale pages are printed.
"""

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from tqgguf.cli import app
from tqgguf.models.huggingface.architectures import CLASSES, official_classes
from tqgguf.rotation.architecture_tables import details, summary

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """Replace what stands between the markers."""
    parser = argparse.ArgumentParser(description="Write the generated tables of docs")
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    check = parser.parse_args().check
    stale = [page for page in sorted(DOCS.glob("*.md")) if fresh(page) != page.read_text()]
    for page in stale:
        if not check:
            page.write_text(fresh(page))
        print(f"{page.name}: {'stale; run make tables' if check else 'written'}")
    raise SystemExit(1 if check and stale else 0)


def fresh(page: Path) -> str:
    """A page with its tables as they should be."""
    text = page.read_text()
    for name, table in TABLES.items():
        marked = re.compile(rf"(?<=<!-- {name}: make tables -->\n).*?(?=<!-- end -->)", re.S)
        if marked.search(text):
            text = marked.sub(f"{table()}\n".replace("\\", r"\\"), text)
    return text


def options() -> str:
    """The options of `tqgguf quantize`, in the groups of its --help."""
    command: Any = typer.main.get_command(app)
    groups: dict[str, list[Any]] = {}
    for option in command.commands["quantize"].params:
        if title := getattr(option, "rich_help_panel", None):
            groups.setdefault(title, []).append(option)
    return "\n".join(line for title in groups for line in _group(title, groups[title]))


def _group(title: str, group: Iterable[Any]) -> Iterator[str]:
    yield from ("", f"| {title} | |", "|---|---|")
    for option in group:
        names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
        value = "" if option.is_flag else f" {option.metavar}".replace("|", r"\|")
        shown = f" Default: `{option.default}`." if _worth_showing(option) else ""
        yield f"| {names}{value} | {option.help}{shown} |"


def _worth_showing(option: Any) -> bool:
    return not option.is_flag and isinstance(option.default, (str, int)) and option.default != ""


def folders() -> str:
    """Which Hugging Face classes are converted natively, and which by llama.cpp's converter."""
    rows: dict[str, list[str]] = {}
    for name, row in CLASSES.items():
        rows.setdefault(row.name, []).append(name)
    native = [f"| `{arch}` | {', '.join(names)} |" for arch, names in sorted(rows.items())]
    others = ", ".join(
        sorted(official_classes() - CLASSES.keys(), key=lambda name: (name.lower(), name))
    )
    head = ["| converted natively: GGUF's name | Hugging Face's classes |", "|---|---|"]
    through = f"Through llama.cpp's own converter: {others}."
    return "\n".join([*head, *native, "", through, "", "Any other class: not at all."])


TABLES = {
    "architectures": summary,
    "streams": details,
    "options": options,
    "folders": folders,
}


if __name__ == "__main__":
    main()
