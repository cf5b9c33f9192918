"""Write the generated tables into README.md and docs/architectures.md.

Run after a change to tqgguf/rotation/architectures.py; while they are stale,
tests/rotation/test_architecture_tables.py fails.
"""

import re
from pathlib import Path

from tqgguf.rotation.architecture_tables import details, summary

ROOT = Path(__file__).parent.parent
TABLES = {"README.md": summary, "docs/architectures.md": details}
MARKED = re.compile(
    r"(?<=<!-- architectures: scripts/write_tables.py -->\n).*?(?=<!-- end -->)", re.S
)


def main() -> None:
    """Replace what stands between the markers."""
    for name, table in TABLES.items():
        path = ROOT / name
        text, count = MARKED.subn(f"{table()}\n", path.read_text())
        if count != 1:
            raise SystemExit(f"{name}: {count} marked places, expected 1")
        path.write_text(text)
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
