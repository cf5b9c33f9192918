"""Accidents: kill -9, Ctrl-C, loss of power, a full disk, and what --resume makes of them."""

import json
import os
import signal
import subprocess
import sys
from os.path import samestat
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from tests.models.huggingface.folders import write_folder
from tests.processes import SLOW, started, wait_for
from tqgguf.calibration.calibrated import Calibrated
from tqgguf.errors import OutputError
from tqgguf.machine.machine import Machine
from tqgguf.models import open_model
from tqgguf.output import disk
from tqgguf.output.files import partial_path
from tqgguf.output.journal import journal_path
from tqgguf.output.layout import Split
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("TQGGUF_KILLS", "10"))  # make fuzz: 50


def job(source, path, *, type="tq-q3", seed=0, **options):
    model = open_model(source)
    return convert(
        model,
        make_plan(model, Options(type=type, seed=seed, rotate="fused", effort="fast")),
        path,
        **options,
    )


def importance(of_first):
    """Importance of the matrices with 256 columns: all ones but for the first column."""
    row = np.ones((1, 256), np.float32)
    row[0, 0] = of_first
    return lambda name: row if name.endswith(("attn_q.weight", "attn_k.weight")) else None


def interrupt(source, path, after=8, **options):
    """Stop a run, as Ctrl-C does, when `after` tensors are reported."""
    with pytest.raises(KeyboardInterrupt) as caught:  # noqa: PT012  the place is the point
        reports = job(source, path, machine=Machine(threads=1), **options)
        for _ in range(after):
            next(reports)
        reports.throw(KeyboardInterrupt())
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(shallow, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "q.gguf"
    list(job(shallow, path))
    return path.read_bytes()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(shallow, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill", shallow, tmp_path, str(KILLS), "8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert len(kills) == KILLS
    assert all(k["identical"] for k in kills), kills
    assert not any(k["left"] for k in kills)
    assert sum(0 < k["recorded"] < 21 for k in kills) > KILLS / 2  # died in the midst of their work
    assert all(k["reported"] == 21 for k in kills if not k["finished"])


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    said = interrupt(shallow, path, after=8)
    assert "tensors are kept, continue with --resume" in said
    assert partial_path(path).exists()
    assert not path.exists()
    lines = journal_path(partial_path(path)).read_text().splitlines()
    assert len(lines) >= 8
    reports = list(job(shallow, path, resume=True))
    assert len(reports) == 21
    assert [p.name for p in tmp_path.iterdir()] == ["q.gguf"]
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_reports_of_a_resumed_run_are_those_of_the_first(shallow, tmp_path):
    path = tmp_path / "q.gguf"
    first = {r.name: r for r in job(shallow, tmp_path / "whole.gguf", machine=Machine(threads=1))}
    interrupt(shallow, path, after=8)
    for report in job(shallow, path, machine=Machine(threads=1), resume=True):
        assert report.shape == first[report.name].shape
        assert report.rel_mse == first[report.name].rel_mse
        assert report.rel_mse_unrotated == first[report.name].rel_mse_unrotated


def test_an_interrupted_run_is_not_thrown_away_unasked(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    interrupt(shallow, path)
    with pytest.raises(OutputError, match=r"unfinished run left \d+ tensors; continue it with --r"):
        list(job(shallow, path))
    assert partial_path(path).exists()
    list(job(shallow, path, force=True))
    assert path.read_bytes() == whole


def test_resume_without_anything_to_resume_is_a_run(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    assert len(list(job(shallow, path, resume=True))) == 21
    assert path.read_bytes() == whole
    assert list(job(shallow, path, resume=True)) == []  # finished already
    with pytest.raises(OutputError, match="exists already"):
        list(job(shallow, path, type="tq-q2", resume=True))


def _change(tmp_path, what):
    source = tmp_path / "m.gguf"
    if what == "content":
        data = bytearray(source.read_bytes())
        data[-1] ^= 1
        source.write_bytes(data)
    if what == "size":
        with source.open("ab") as file:
            file.write(bytes(32))
    return source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "options", "says"),
    [
        ("content", {}, r"input m\.gguf was 4,\d+,\d+ bytes of .* and is .* now"),
        ("size", {}, r"input m\.gguf was"),
        ("", {"type": "tq-q2"}, "--type was TQ-Q3 and is TQ-Q2 now; start over with --force"),
        ("", {"seed": 1}, "--seed was 0 and is 1 now"),
        ("", {"split": Split(max_tensors=4)}, "number of files was 1 and is 6 now"),
        (
            "",
            {"importance": lambda _: None},
            "content of --imatrix was [0-9a-f]{16} and is none now",
        ),
        (
            "",
            {"importance": importance(2)},
            "content of --imatrix was [0-9a-f]{16} and is [0-9a-f]",
        ),
        (
            "",
            {"calibrated": Calibrated({}, "text")},
            "content of --calibrate was none and is text now",
        ),
    ],
)
def test_another_run_is_not_resumed(shallow, tmp_path, what, options, says):
    source, path = tmp_path / "m.gguf", tmp_path / "q.gguf"
    source.write_bytes(shallow.read_bytes())
    interrupt(source, path, importance=importance(1))
    _change(tmp_path, what)
    before = journal_path(partial_path(path)).read_bytes()
    with pytest.raises(OutputError, match=f"cannot resume: .*{says}"):
        list(job(source, path, resume=True, **{"importance": importance(1)} | options))
    assert journal_path(partial_path(path)).read_bytes() == before


@pytest.mark.slow
def test_the_importance_of_a_finished_output_is_remembered(shallow, tmp_path):
    path = tmp_path / "q.gguf"
    interrupt(shallow, path, importance=importance(1))
    assert len(list(job(shallow, path, resume=True, importance=importance(1)))) == 21
    list(job(shallow, tmp_path / "whole.gguf", importance=importance(1)))
    assert path.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert list(job(shallow, path, resume=True, importance=importance(1))) == []
    with pytest.raises(OutputError, match="exists already"):
        list(job(shallow, path, resume=True, importance=importance(2)))


def test_another_tokenizer_under_the_same_name_is_another_run(novels, tmp_path):
    folder, vocabulary = write_folder(tmp_path / "hf"), tmp_path / "vocabulary.gguf"
    vocabulary.write_bytes(novels.read_bytes())

    def run(**options):
        model = open_model(folder, vocab_from=vocabulary)
        return convert(
            model, make_plan(model, Options(type="q8_0", rotate="fused")), tmp_path / "q", **options
        )

    reports = run(machine=Machine(threads=1))
    for _ in range(12):
        next(reports)
    reports.close()
    vocabulary.write_bytes(novels.read_bytes().replace("\u2581the".encode(), "\u2581teh".encode()))
    with pytest.raises(OutputError, match="cannot resume: the metadata was"):
        list(run(resume=True))


def test_a_journal_of_another_version_is_not_resumed(shallow, tmp_path):
    path = tmp_path / "q.gguf"
    interrupt(shallow, path)
    journal = journal_path(partial_path(path))
    journal.write_text(journal.read_text().replace('"version ', '"version 99.'))
    with pytest.raises(OutputError, match=r"tqgguf was version 99\..* and is version"):
        list(job(shallow, path, resume=True))


def test_tensors_that_power_loss_took_from_the_disk_are_made_again(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    interrupt(shallow, path, after=12)
    with partial_path(path).open("r+b") as file:
        file.seek(200_000)
        file.write(bytes(300_000))
    list(job(shallow, path, resume=True))
    assert path.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 7, 100, 1000])
def test_a_journal_that_ends_in_the_middle_of_a_line_is_read_up_to_there(
    shallow, tmp_path, whole, cut
):
    path = tmp_path / "q.gguf"
    interrupt(shallow, path)
    journal = journal_path(partial_path(path))
    journal.write_bytes(journal.read_bytes()[:-cut])
    interrupt(shallow, path, after=16, resume=True)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len({line["tensor"] for line in lines[1:]}) == len(lines) - 1 >= 16
    list(job(shallow, path, resume=True))
    assert path.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("junk", [b"", b"{", b"null\n", b'{"journal": 1, "run": 3}\n', bytes(99)])
def test_a_damaged_journal_is_a_fresh_start(shallow, tmp_path, whole, junk):
    path = tmp_path / "q.gguf"
    interrupt(shallow, path)
    journal_path(partial_path(path)).write_bytes(junk)
    list(job(shallow, path, resume=True))
    assert path.read_bytes() == whole


def test_a_lost_partial_file_is_a_fresh_start(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    interrupt(shallow, path)
    partial_path(path).unlink()
    list(job(shallow, path, resume=True))
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_a_run_that_died_while_it_renamed_its_shards_is_finished(shallow, tmp_path):
    split = Split(max_tensors=8)
    list(job(shallow, tmp_path / "a.gguf", split=split))
    want = [p.read_bytes() for p in sorted(tmp_path.glob("a-*"))]
    interrupt(shallow, tmp_path / "b.gguf", after=21, split=split)
    last = tmp_path / "b-00003-of-00003.gguf"
    partial_path(last).replace(last)
    list(job(shallow, tmp_path / "b.gguf", split=split, resume=True))
    assert [p.read_bytes() for p in sorted(tmp_path.glob("b-*"))] == want


def test_data_is_on_the_disk_before_the_journal_says_so(shallow, tmp_path, monkeypatch):
    path, log, fsync = tmp_path / "q.gguf", [], os.fsync

    def logged(fd):
        (file,) = (p for p in [tmp_path, *tmp_path.iterdir()] if samestat(p.stat(), os.fstat(fd)))
        log.append((file.name, os.fstat(fd).st_size))
        fsync(fd)

    monkeypatch.setattr(disk.os, "fsync", logged)
    list(job(shallow, path, machine=Machine(threads=1)))
    names = [name for name, _ in log if name != tmp_path.name]
    assert names[0] == "q.gguf.partial.journal"  # the run itself, before any tensor
    assert names[1::2].count("q.gguf.partial") == len(names[1::2]) > 1
    assert set(names[2::2]) == {"q.gguf.partial.journal"}
    assert log[-1][0] == tmp_path.name  # the new name, after everything


def test_two_runs_into_one_output_are_not_mixed(shallow, tmp_path, whole):
    path = tmp_path / "q.gguf"
    first = job(shallow, path)
    next(first)
    with pytest.raises(OutputError, match=r"q\.gguf: another tqgguf is writing it"):
        list(job(shallow, path, force=True))
    list(first)
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_a_full_disk_is_found_before_the_work_and_leaves_nothing(shallow, tmp_path):
    limited = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from tqgguf.cli import main
main()
"""
    command = [sys.executable, "-c", limited, "quantize", shallow, "-o", tmp_path / "q.gguf"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("q.gguf: file too large (the output takes 1.4 MB)")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_in_the_middle_keeps_what_is_done(
    shallow, tmp_path, whole, monkeypatch
):
    path = tmp_path / "q.gguf"
    write, written = disk._put, []

    def full(fd, data, offset):
        written.append(len(data))
        if len(written) > 12:
            raise OSError(28, "No space left on device")
        write(fd, data, offset)

    monkeypatch.setattr(disk, "_put", full)
    with pytest.raises(OutputError, match=r"no space left on .*; \d+ tensors are kept, cont"):
        list(job(shallow, path, machine=Machine(threads=1)))
    monkeypatch.undo()
    list(job(shallow, path, resume=True))
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_kill_minus_nine_and_resume_on_the_command_line(shallow, tmp_path):
    path = tmp_path / "q.gguf"
    arguments = ["quantize", shallow, "-o", path, "-t", "tq-q3"]
    arguments += ["--rotate", "fused", "--effort", "fast"]
    slow = [sys.executable, "-c", f"{SLOW}from tqgguf.cli import main; main()", *arguments]
    journal = journal_path(partial_path(path))
    with started(slow, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        wait_for(lambda: journal.exists() and journal.stat().st_size > 2000)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not path.exists()
    command = [sys.executable, "-m", "tqgguf", *arguments, "--resume", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["tensors"]) == 21
    assert np.array_equal(
        np.fromfile(path, np.uint8), np.fromfile(_fresh(shallow, tmp_path), np.uint8)
    )


def _fresh(shallow, tmp_path):
    list(job(shallow, tmp_path / "fresh.gguf"))
    return tmp_path / "fresh.gguf"


def test_checksums_do_not_hold_up_the_work(shallow, tmp_path, monkeypatch, whole):
    may_begin, checksum = Event(), disk.Slot.checksum

    def late(slot):
        assert may_begin.wait(60), "a report waits for its tensor's checksum"
        return checksum(slot)

    monkeypatch.setattr(disk.Slot, "checksum", late)
    reports = job(shallow, tmp_path / "q.gguf")
    next(reports)
    may_begin.set()
    assert len(list(reports)) == 20
    assert (tmp_path / "q.gguf").read_bytes() == whole
