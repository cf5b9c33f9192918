"""A ladder from the first file to the page: interrupted, resumed, and every number of its card."""

import hashlib
import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
import yaml

from tests.cli.story import fails, run, succeeds
from tqgguf.models import open_model
from tqgguf.network.memory import memory
from tqgguf.publishing import ladder as making

TYPES = ("Q4_0", "Q8_0")


def interrupt_after_one(monkeypatch):
    """Press Ctrl-C as soon as the first file is finished."""
    finish = making.finish

    def finish_and_interrupt(*what):
        finish(*what)
        monkeypatch.setattr(making, "finish", finish)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(making, "finish", finish_and_interrupt)


def rows(card, heading):
    """The cells of the table under a heading, without the table's head."""
    part = card.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def size(n_bytes):
    return f"{n_bytes / 1e6:.1f} MB"


def name_of(cell):
    """The file that a link names."""
    return re.fullmatch(r"\[(.*)\]\((.*)\)", cell)[1]


@pytest.fixture
def command(shallow, calibration, text):
    def made(folder, *more):
        options = ("--types", ",".join(TYPES), "--calibrate", calibration)
        options += ("--calibrate-tokens", 512, "--eval", text, "--chunks", 2, "--threads", 1)
        return ("ladder", shallow, "-o", folder, *options, *more)

    return made


@pytest.mark.slow
@pytest.mark.tools
@pytest.mark.usefixtures("cache")
def test_the_story_of_a_ladder(shallow, text, calibration, tmp_path, monkeypatch, command):
    folder = tmp_path / "out"
    interrupt_after_one(monkeypatch)
    cut = run(*command(folder))
    assert cut.exit_code == 130
    assert "1 files are finished, and the same command goes on with the others" in cut.stderr
    first = folder / "shallow-2m-Q4_0.gguf"
    written = first.stat()
    assert not (folder / "README.md").exists()

    result = json.loads(succeeds(*command(folder, "--bench", "--rounds", 1), "--json"))
    assert first.stat() == written  # kept, not made again
    card = (folder / "README.md").read_text()
    paths = [folder / file["file"] for file in result["files"]]
    assert [p.name for p in paths] == [f"shallow-2m-{type}.gguf" for type in TYPES]
    check_sums(folder)
    check_table(card, paths, shallow, text, result)
    check_advice(card, paths)
    check_commands(card, folder, (shallow, calibration, text), tmp_path, monkeypatch)

    again = json.loads(succeeds(*command(folder, "--bench", "--rounds", 1), "--json"))
    assert again == result  # what was measured is not measured again
    assert (folder / "README.md").read_text() == card


def check_sums(folder):
    lines = [line.split() for line in (folder / "SHA256SUMS").read_text().splitlines()]
    named = {name for _, name in lines}
    assert named == {p.name for p in folder.glob("*.gguf")}
    assert len(named) == 3  # two models and the importance matrix
    assert all(sha256(folder / name) == told for told, name in lines)


def check_table(card, paths, original, text, result):
    """Sizes by the disk, quality by `tqgguf eval`, which measures anew."""
    found = rows(card, "Files")
    options = ("--text", text, "--chunks", 2, "--threads", 1, "--json")
    measured = json.loads(succeeds("eval", original, *paths, *options))
    weights = sum(t.size for t in open_model(original).tensors.values())
    for cells, path, row, file in zip(
        found, paths, measured["rows"], result["files"], strict=False
    ):
        bpw = f"{8 * open_model(path).n_bytes / weights:.2f}"
        kld = [f"{row[key]:.3g}" for key in ("kld_mean", "kld_p999")]
        told = [path.name, file["type"], size(path.stat().st_size), bpw, *kld]
        told += [f"{row['same_top']:.1f} %", f"{row['ppl']:.3f}", f"{file['speed']['tg']:.1f}"]
        assert [name_of(cells[0]), *cells[1:]] == told
    first = measured["original"]
    bpw = f"{first['bpw']:.2f}"
    told = ["F16", size(first["bytes"]), bpw, "0", "0", "100 %", f"{first['ppl']:.3f}", ""]
    assert found[len(paths) :] == [["the original", *told]]
    assert f"on 2 chunks of 256 tokens of {text.name}" in card
    assert "calibrated on 512 tokens of novels-calib.txt" in card
    assert "shallow-2m-Q8_0" in (paths[0].parent / "front.svg").read_text()


def check_advice(card, paths):
    needs = [size(memory(open_model(p)).total) for p in paths]
    found = rows(card, "Which file to take")
    assert [(cells[0], name_of(cells[1])) for cells in found] == [
        (need, path.name) for need, path in zip(needs, paths, strict=True)
    ]
    assert "context of 256 tokens" in card


def check_commands(card, folder, inputs, tmp_path, monkeypatch):
    """The commands of the card make these very files."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    for path in inputs:
        (place / path.name).symlink_to(path)
    monkeypatch.chdir(place)
    lines = [line for line in card.splitlines() if line.startswith("tqgguf quantize")]
    assert len(lines) == len(TYPES)
    for line in lines:
        words = shlex.split(line)[1:]
        succeeds(*words, "--threads", 1)
        made = Path(words[words.index("-o") + 1])
        assert sha256(made) == sha256(folder / made.name)


def test_the_front_matter_says_what_the_model_does(stories, tmp_path):
    source = tmp_path / "tiny.gguf"
    source.write_bytes(stories.read_bytes())
    folder = tmp_path / "out"
    quick = ("--types", "q8_0,f16", "--effort", "fast", "--rotate", "none")
    succeeds(
        "ladder", source, "-o", folder, *quick, "--base-model", "org/tiny", "--quantized-by", "me"
    )
    card = (folder / "README.md").read_text()
    told = yaml.safe_load(card.split("---\n")[1])
    assert told["base_model"] == "org/tiny"
    assert (told["base_model_relation"], told["quantized_by"]) == ("quantized", "me")
    assert "gguf" in told["tags"]
    assert "KLD" not in card.replace("KLD mean", "").replace("not measured", "")
    assert not (folder / "front.svg").exists()


def test_a_ladder_without_files_gives_way(novels, stories, tmp_path):
    """And what its files were not made of: an option that was wrong is no ladder."""
    folder = tmp_path / "out"
    quick = ("--effort", "fast", "--rotate", "none", "-q")
    succeeds("quantize", novels, "-o", tmp_path / "q.gguf", "-t", "q8_0", *quick)
    again = ("ladder", tmp_path / "q.gguf", "-o", folder, "--types", "q4_0", *quick)
    fails(*again, says="is already Q8_0")
    (folder / "novels.gguf.partial").write_bytes(b"x")
    succeeds("ladder", stories, "-o", folder, "--types", "q4_0", *quick)
    assert {p.name for p in folder.iterdir()} == {
        *("README.md", "SHA256SUMS", "ladder.json", "stories260K-Q4_0.gguf")
    }
    matrix = novels.with_name("novels-5m.imatrix.gguf")
    weighed = ("--types", "q4_0", "--imatrix", matrix, "--rotate", "none", "-q")
    succeeds("ladder", novels, "-o", tmp_path / "weighed", *weighed)
    card = (tmp_path / "weighed" / "README.md").read_text()
    assert "* errors are weighed by novels-5m.imatrix.gguf\n" in card
    assert "--type q4_0 --rotate none --imatrix novels-5m.imatrix.gguf" in card


def test_what_a_ladder_refuses(novels, stories, tmp_path, monkeypatch):
    tensor = ("--rotate", "tensor", "-q")
    fails("ladder", stories, "-o", tmp_path / "x", *tensor, says="llama.cpp would compute noise")
    fails("ladder", stories, "-o", tmp_path / "x", "--types", "q9", "-q", says="'q9' is unknown")
    quick = ("--types", "q8_0", "--effort", "fast", "--rotate", "none", "-q")
    folder = tmp_path / "out"
    assert run("ladder", stories, "-o", folder, *quick).exit_code == 0
    fails("ladder", novels, "-o", folder, *quick, says="holds another ladder: model was content")
    fails("ladder", stories, "-o", folder, *quick[:2], "-q", says="effort was fast and is good now")
    card = folder / "README.md"
    card.write_text(card.read_text() + "by hand\n")
    fails("ladder", stories, "-o", folder, *quick, says="was edited since it was made")
    assert card.read_text().endswith("by hand\n")
    assert run("ladder", stories, "-o", folder, *quick, "--force").exit_code == 0
    assert not card.read_text().endswith("by hand\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    fails("ladder", stories, "-o", other, *quick, says="holds mine.txt and no ladder.json")
    fails("ladder", stories, "-o", other / "mine.txt", *quick, says="mine.txt: file exists")
    monkeypatch.setattr("shutil.disk_usage", lambda _: Free())
    fails("ladder", stories, "-o", tmp_path / "full", *quick, says="but only 0.1 MB are free")
    assert not list((tmp_path / "full").glob("*.gguf*"))


class Free:
    """A disk that is almost full."""

    free = 100_000


def test_a_file_that_was_changed_is_made_again(stories, tmp_path):
    quick = ("--types", "q8_0", "--effort", "fast", "--rotate", "none", "-q")
    folder = tmp_path / "out"
    run("ladder", stories, "-o", folder, *quick)
    (file,) = folder.glob("*.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert run("ladder", stories, "-o", folder, *quick).exit_code == 0
    assert file.read_bytes() == whole
    assert run("ladder", stories, "-o", folder, *quick[2:], "--types", "q4_0").exit_code == 0
    assert len(list(folder.glob("*.gguf"))) == 2  # a size may be added
    assert (folder / "README.md").read_text().count("tqgguf quantize") == 2
    file.unlink()  # one that is not asked for again is left out
    left = run("ladder", stories, "-o", folder, *quick[2:], "--types", "q4_0")
    assert left.exit_code == 0
    assert f"{file.name}: is gone or was changed" in left.stderr
    for page in ("README.md", "SHA256SUMS"):
        assert file.name not in (folder / page).read_text()


@pytest.mark.tools
def test_a_text_that_is_too_short_is_found_first(stories, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time")
    folder = tmp_path / "out"
    quick = ("--types", "q8_0", "--effort", "fast", "--eval", short, "-q")
    result = run("ladder", stories, "-o", folder, *quick)
    assert result.exit_code == 1
    assert "tokens" in result.stderr
    assert not list(folder.glob("*.gguf"))


def test_sizes_are_kept_to(stories, tmp_path):
    folder = tmp_path / "out"
    quick = ("--effort", "fast", "--rotate", "none", "--threads", 1)
    said = run("ladder", stories, "-o", folder, "--sizes", "260K,350kb", *quick)
    assert said.exit_code == 0, said.output
    (small, large) = sorted(p.stat().st_size for p in folder.glob("*-TQ-*.gguf"))
    assert 200_000 < small <= 260_000 < large <= 350_000
    assert "free memory: stories260K-TQ-" in said.stdout
    assert max(map(len, said.stdout.splitlines())) < 160
    card = (folder / "README.md").read_text()
    assert "--sizes 260K,350KB" in card
    assert "--target-size 260000 " in card
    fails(
        "ladder", stories, "-o", folder, "--sizes", "1K", *quick, "-q", says="smallest types take"
    )
