"""Draw the table that `make real` prints, as `tqgguf eval --plot` draws what it measures.

The picture of the README is made of the table in docs/calibrate.md, so that they say the same:

    python scripts/draw_table.py docs/calibrate.md docs/front.svg     (make tables)
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from tqgguf.cli.front import draw_front
from tqgguf.measure.eval import QualityRow, mark_pareto

LINE = re.compile(
    r"^\| (?P<file>(?:llama-quantize|tqgguf) [^|]+) \| (?P<bytes>[\d,]+) \| (?P<bpw>[\d.]+) "
    r"\| (?P<kld>[\d.]+) \|",
    re.MULTILINE,
)


def main() -> None:
    """Read the page, draw the picture."""
    parser = argparse.ArgumentParser(description="draw the table of make real")
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    rows = list(read(args.page.read_text()))
    if not rows:
        raise SystemExit(f"{args.page}: holds no table of make real")
    draw_front(mark_pareto(rows), args.picture)


def read(text: str) -> Iterator[QualityRow]:
    """The rows of a table; what it does not tell is 0."""
    for line in LINE.finditer(text):
        size, kld = int(line["bytes"].replace(",", "")), float(line["kld"])
        yield QualityRow(short_name(line["file"], size), size, float(line["bpw"]), 0, kld, 0, 0, 0)


def short_name(file: str, size: int) -> str:
    """`TQ-Q4 best` for `tqgguf --type tq-q4 --effort best`, `Q4_K_M + imatrix` for theirs."""
    if file.startswith("llama-quantize "):
        return file.removeprefix("llama-quantize ").replace(" with ", " + ")
    words = file.split()
    type = words[words.index("--type") + 1] if "--type" in words else f"TQ-{size / 1e6:.0f} MB"
    effort = words[words.index("--effort") + 1] if "--effort" in words else ""
    return f"{type.upper()} {effort}".strip()


if __name__ == "__main__":
    main()
