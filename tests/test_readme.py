"""The README is short, and its tree and its list of commands are the real ones."""

import re
from pathlib import Path

from tqgguf.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_tree_in_the_readme_is_the_tree():
    block = README.split("tqgguf/\n", 1)[1].split("```")[0]
    named = set(re.findall(r"^  ([a-z_]+(?:\.py|/))", block, re.MULTILINE))
    package = ROOT / "tqgguf"
    real = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    real |= {p.name for p in package.glob("*.py") if not p.name.startswith("__")}
    assert named == real


def test_every_command_is_in_the_readme_and_the_other_way_round():
    groups = {g.name or g.typer_instance.info.name for g in app.registered_groups}
    commands = {c.name or c.callback.__name__ for c in app.registered_commands} | groups
    named = set(re.findall(r"^\| `tqgguf (\w+)", README, re.MULTILINE))
    assert named == commands
