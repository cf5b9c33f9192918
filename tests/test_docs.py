"""The README and the pages of docs tell the truth: commands, options, links, examples, tables."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.cli.story import succeeds
from tqgguf import Options, convert
from tqgguf.cli import app
from tqgguf.planning.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
del PAGES["LOG.md"]  # what was, under the names of its day
TEXTS = {"README.md": (ROOT / "README.md").read_text(), **PAGES}
TEXTS["CONTRIBUTING.md"] = (ROOT / "CONTRIBUTING.md").read_text()
MAIN = typer.main.get_command(app)
THEIRS = {"--pure", "--imatrix"}  # of llama-quantize and pip


def commands(group=MAIN, prefix=""):
    """Every command by its words, `report mse` say."""
    found = {}
    for name, command in group.commands.items():
        words = f"{prefix}{name}"
        found |= commands(command, f"{words} ") if hasattr(command, "commands") else {}
        found[words] = command
    return found


COMMANDS = commands()


def options(command):
    names = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return {name for name in names if name.startswith("-")}


def blocks(text, language=""):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell_lines(text):
    """The commands in a page's plain blocks and in backticks, without their comments."""
    lines = [line.partition(" #")[0] for block in blocks(text) for line in block.splitlines()]
    lines += re.findall(r"`((?:tqgguf|make) [^`]*)`", text)
    return [line.strip() for line in lines if line.startswith(("tqgguf ", "make "))]


LINES = [(page, line) for page, text in TEXTS.items() for line in shell_lines(text)]


@pytest.mark.parametrize(("page", "line"), [x for x in LINES if x[1].startswith("tqgguf")])
def test_a_command_in_the_pages_exists_with_its_options(page, line):
    words = shlex.split(line.replace("...", ""))[1:]
    if words[0] in ("--version", "--help"):
        return
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    assert name in COMMANDS, page
    given = {word for word in words if re.match(r"--?[a-z]", word)}
    assert given <= options(COMMANDS[name]), page


@pytest.mark.parametrize(("page", "line"), [x for x in LINES if x[1].startswith("make")])
def test_a_target_in_the_pages_exists(page, line):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{re.escape(line.split()[1])}:", makefile, re.MULTILINE), page


@pytest.mark.parametrize("page", TEXTS)
def test_an_option_that_is_named_exists(page):
    every = {name for command in COMMANDS.values() for name in options(command)} | THEIRS
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    named = {name for code in re.findall(r"`([^`]+)`", prose) for name in code.split()}
    assert {name for name in named if re.fullmatch(r"--[a-z-]+", name)} <= every


def test_every_option_of_the_main_job_is_told_of():
    told = set(re.findall(r"--?[a-z][a-z-]*", PAGES["quantize.md"]))
    assert options(COMMANDS["quantize"]) - {"--help", "-h"} <= told


def test_every_page_is_linked_from_the_readme():
    for page in PAGES:
        assert f"](docs/{page})" in TEXTS["README.md"], page


@pytest.mark.parametrize("page", TEXTS)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(page):
    for table in re.findall(r"(?:^\|.*\n?)+", TEXTS[page], re.MULTILINE):
        rows = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert set(rows) == {rows[0]}, table


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_whole_on_a_narrow_terminal(name, monkeypatch):
    """Rich cuts off a word that is longer than its column."""
    monkeypatch.setenv("COLUMNS", "80")
    page = succeeds(*name.split(), "--help")
    assert "Usage" in page
    assert "…" not in page


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    folder = ROOT if page in ("README.md", "CONTRIBUTING.md") else ROOT / "docs"
    links = re.findall(r"\]\(([^)#:]+)(?:#([^)]+))?\)", TEXTS[page])
    for target, anchor in links:
        assert (folder / target).exists(), (page, target)
        assert not anchor or anchor in anchors((folder / target).read_text()), (page, anchor)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    ("page", "code"),
    [(page, code) for page, text in TEXTS.items() for code in blocks(text, "python")],
)
def test_a_python_example_prints_what_its_comments_say(page, code, capsys, tmp_path, monkeypatch):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {})  # our own text
    promised = re.findall(r"^(?: *print\(.*\)  )?# (.*)$", code, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == promised != []


def test_the_generated_tables_are_fresh():
    script = ROOT / "scripts" / "write_tables.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.slow
def test_the_first_commands_work_as_they_are_pasted(tmp_path):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    lines = blocks(TEXTS["README.md"].partition("## Try it")[2])[0].splitlines()
    assert len(lines) == 3
    for line in lines:
        command = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout


def environment():
    """This tree's tqgguf, wherever the command is run."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_the_sizes_of_the_recipes_are_true(novels, tmp_path):
    table = re.findall(r"^\| `(tq-[a-z0-9-]+)` \| [^|]+ \| ([\d,]+) \|", PAGES["quantize.md"], re.M)
    assert {name.upper() for name, _ in table} == set(RECIPES)
    for name, size in table:
        options = Options(type=name, rotate="none", effort="fast")
        assert f"{convert(novels, tmp_path / name, options).n_bytes:,}" == size, name


@pytest.mark.slow
def test_the_picture_shows_the_table(tmp_path):
    made, script = tmp_path / "front.svg", ROOT / "scripts" / "draw_table.py"
    command = [sys.executable, script, ROOT / "docs" / "calibrate.md", made]
    subprocess.run(command, check=True, env=environment())
    shown, kept = (
        re.findall(r"<text[^>]*>([^<]*)<", path.read_text())
        for path in (made, ROOT / "docs" / "front.svg")
    )
    assert "TQ-Q4 good" in kept
    assert shown == kept, "run make picture"
