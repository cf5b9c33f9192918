"""What cannot be printed ends no work and shows no traceback; the exit status tells of the file."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.cli.story import fails, run
from tqgguf.cli import console
from tqgguf.cli.console import plain_name, quoted

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
QUICK = ("-t", "q8_0", "--rotate", "none", "--effort", "fast", "--force")


def tqgguf(*args, encoding="utf-8", **streams):
    """Run the command line in a process of its own, with real streams."""
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "tqgguf", *map(str, args)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    result = subprocess.run(command, cwd=ROOT, env=env, check=False, **streams)
    assert b"Traceback" not in (result.stderr or b"")
    return result


def closed():
    """A pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_name_that_the_terminal_cannot_show(stories, tmp_path, encoding):
    source, output = tmp_path / "größe→é.gguf", tmp_path / "→.gguf"
    source.write_bytes(stories.read_bytes())
    result = tqgguf("quantize", source, "-o", output, *QUICK, encoding=encoding)
    assert result.returncode == 0
    assert output.exists()
    assert rb"\u2192.gguf" in result.stdout
    missing = tqgguf("inspect", tmp_path / "→→", encoding=encoding)
    assert missing.returncode == 1
    assert rb"\u2192\u2192: no such file" in missing.stderr


@pytest.mark.slow
def test_names_that_are_no_utf_8(stories, novels, calibration, tmp_path):
    """And those that a picture would take for a formula."""
    name = os.fsdecode(b"no\xff$x_{$")
    source, text = tmp_path / f"{name}.gguf", tmp_path / f"{name}.txt"
    source.write_bytes(stories.read_bytes())
    text.write_text(calibration.read_text()[:3000])
    saved, output, plot = (tmp_path / f"{name}.{e}" for e in ("imatrix", "o.gguf", "svg"))
    options = ("--calibrate", text, "--calibrate-tokens", 512, "--save-imatrix", saved)
    for args in (
        ("quantize", source, "-o", output, "-t", "q8_0", *options),
        ("quantize", source, "-o", output, *QUICK[:2], "--imatrix", saved, "--force", "--json"),
        ("verify", output, source),
        ("compare", source, output, "--json"),
        ("report", "mse", source, "--types", "q8_0", "--effort", "fast", "--plot", plot),
    ):
        done = run(*args)
        assert done.exit_code == 0, done.output
    assert tqgguf("inspect", output).returncode == 0
    folder = tmp_path / os.fsdecode(b"hf\xff")
    shutil.copytree(novels.with_name("novels-5m"), folder)
    assert run("plan", folder, "--effort", "fast").exit_code == 0


@pytest.mark.slow
@needs_full
def test_a_full_disk_behind_stdout(stories, tmp_path):
    output = tmp_path / "o.gguf"
    with FULL.open("wb") as full:
        shown = tqgguf("inspect", stories, "--json", stdout=full)
        made = tqgguf("quantize", stories, "-o", output, *QUICK, "--json", stdout=full)
        page = tqgguf("--help", stdout=full)
        version = tqgguf("--version", stdout=full)
    assert (shown.returncode, page.returncode, version.returncode) == (1, 1, 1)
    assert shown.stderr == b"error: cannot print: no space left on device\n"
    assert made.returncode == 0  # the file is there
    assert b"warning: cannot print: no space left on device" in made.stderr
    assert output.exists()


@pytest.mark.slow
@needs_full
def test_a_full_disk_behind_stderr(stories, tmp_path):
    output = tmp_path / "o.gguf"
    with FULL.open("wb") as full:
        made = tqgguf("quantize", stories, "-o", output, *QUICK, "-v", stderr=full)
        failed = tqgguf("quantize", tmp_path / "absent", stderr=full)
    assert (made.returncode, failed.returncode) == (0, 1)
    assert output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_reader_that_left(stories, tmp_path, streams):
    output = tmp_path / "o.gguf"
    pipes = dict.fromkeys(streams, closed())
    made = tqgguf("quantize", stories, "-o", output, *QUICK, "-v", **pipes)
    assert made.returncode == 0
    assert output.exists()
    if "stdout" in streams:
        assert tqgguf("inspect", stories, **pipes).returncode == 0  # `| head` is no failure


@pytest.mark.parametrize("args", [("quantize", ""), ("inspect", ""), ("quantize", "a", "-o", "")])
def test_an_empty_argument_is_a_mistake(args):
    result = run(*args)
    assert result.exit_code == 2
    assert "an argument is empty" in result.stderr


def test_hints_can_be_pasted(stories, tmp_path):
    output = tmp_path / "it's a $model.gguf"
    result = run("quantize", stories, "-o", output, *QUICK)
    hint = re.search(r"run it: +llama-cli -m (.*)", result.stdout)[1]
    modelfile = re.search(
        r"or Ollama: (echo .*) > Modelfile && ollama create (\S+) ", result.stdout
    )
    said = subprocess.run(f"echo {hint}", shell=True, capture_output=True, text=True, check=True)
    assert said.stdout == f"{output}\n"
    said = subprocess.run(modelfile[1], shell=True, capture_output=True, text=True, check=True)
    assert said.stdout == f"FROM {output}\n"
    assert modelfile[2] == "it-s-a-model"
    assert quoted("-o.gguf") == "./-o.gguf"
    assert plain_name("...") == "model"


@pytest.mark.parametrize("columns", [80, 200])
def test_the_story_of_quantize_on_a_terminal(stories, tmp_path, columns):
    """What was decided comes first, then a bar with the time left, then a short table."""
    output = tmp_path / "o.gguf"
    quick = ("-t", "q4_k", "--effort", "fast")
    said = on_a_terminal(columns, "quantize", stories, "-o", output, *quick)
    labels = ("rotation", "text", "types", "size", "time", "more:", "run it:", "or Ollama:")
    places = [re.search(rf"^{label} ", said, re.MULTILINE).start() for label in labels]
    bar = re.search(r"o\.gguf: +\d+%\|.*\[\d\d:\d\d<[\d?]", said).start()
    assert [*places[:5], bar, *places[5:]] == sorted([*places, bar])
    assert re.search(r"^time      about \d+ s$", said, re.MULTILINE)
    lines = re.sub(r"\x1b\[\d*m", "", said).splitlines()
    pasted = ("run it:", "or Ollama:", "warning:")  # whole lines, which the terminal folds
    longest = max(len(line) for line in lines if not line.startswith(pasted))
    assert longest <= columns
    assert (longest > 80) == (columns == 200)


def test_a_narrow_terminal_breaks_no_number_and_no_tensors_name(monkeypatch):
    """Text is folded, and so is a path, which may be longer than any terminal."""
    shown, path = StringIO(), "/a/path/of/many/letters/that/no/column/has/room/for.gguf"
    row = ["blk.10.attn_output.weight", "1.23e-05", "0.00537", "why it has this type", path]
    monkeypatch.setattr(console, "out", Console(file=shown, width=80))
    console.say_table(["tensor", "MSE", "rel. MSE", "why", "file"], [row])
    for word in (*row[:3], *row[3].split()):
        assert f" {word} " in shown.getvalue()
    assert path not in shown.getvalue()
    assert max(map(len, shown.getvalue().splitlines())) < 110


def on_a_terminal(columns, *args):
    """What a command shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "tqgguf", *map(str, args)]
    with subprocess.Popen(
        command, cwd=ROOT, env=env | {"TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs
    ):
        os.close(theirs)
        shown = b"".join(iter(partial(read, ours), b""))
    os.close(ours)
    return shown.decode().replace("\r\n", "\n").replace("\r", "\n")


def read(terminal):
    """What is there; nothing once the command has left."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def test_llama_quantizes_mixtures_are_named(stories):
    says = "that is a mixture of llama-quantize's; use tq-q4 or q4_k; known: TQ-Q4"
    fails("plan", stories, "-t", "q4_k_m", says=says)
    fails("plan", stories, "-t", "IQ3_M", says="llama-quantize's; use tq-q3; known")
    fails("plan", stories, "-t", "q9_k_m", says="type 'q9_k_m' is unknown; known: TQ-Q4")


def test_what_the_system_refuses_is_one_line(stories, tmp_path):
    folder = tmp_path / "text.txt"
    folder.mkdir()
    fails("quantize", stories, "--imatrix", folder, "-o", tmp_path / "o", says="is a directory")
