"""The generated tables are fresh."""

from pathlib import Path

import pytest

from tqgguf.rotation.architecture_tables import details, summary
from tqgguf.rotation.architectures import STREAMS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "table"), [("docs/architectures.md", summary), ("docs/architectures.md", details)]
)
def test_a_table_is_fresh(name, table):
    assert table() in (ROOT / name).read_text(), "run make tables"


def test_every_architecture_has_a_line():
    assert all(summary().count(f"| `{name}` |") == 1 for name in STREAMS)


def test_every_row_gives_its_reasoning():
    assert all(row.refusal or row.note for row in STREAMS.values())


def test_a_row_that_is_refused_says_why():
    assert all(row.values or row.why_no_values for row in STREAMS.values())
